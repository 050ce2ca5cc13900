"""Results on disk: each is computed once, and a study that was stopped resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from entropy_probe.evaluation import Outcome, Scorer, outcome_of
from entropy_probe.laws import ScalingLaw, from_json, to_json
from entropy_probe.models import fingerprint, fingerprint_version
from entropy_probe.runs import Sweep, write_atomically

log = Console(stderr=True, highlight=False).print


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as JSON records, with 15 digits."""
    write_atomically(path, table.to_json(orient="records", indent=1, double_precision=15).encode())


def read_table(path: Path) -> pd.DataFrame:
    """Read a table that `write_table` wrote."""
    return pd.DataFrame(json.loads(path.read_text()))


def stored_table(path: Path, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return the table at `path`; compute and write it if the file does not exist."""
    if not path.exists():
        write_table(path, compute())
    return read_table(path)


def stored_law(path: Path, derive: Callable[[], ScalingLaw]) -> ScalingLaw:
    """Return the law at `path`; derive and write it if the file does not exist."""
    if not path.exists():
        write_atomically(path, to_json(derive()).encode())
    return from_json(path.read_text())


def stored_outcome(path: Path, sweep: Sweep, scorer: Scorer, *, progress: bool = True) -> Outcome:
    """Return the outcome of a sweep at `path`; evaluate and write it if there is none of the same grid."""
    if path.exists() and (stored := Outcome.from_json(path.read_text(), sweep)).sweep.grid == sweep.grid:
        return stored
    outcome = outcome_of(sweep, scorer, progress=progress)
    write_atomically(path, outcome.to_json().encode())
    return outcome


def check_settings(results: Path, settings: dict[str, Any], name: str = "settings.json") -> None:
    """Record the settings of a folder of results, or check that they match the recorded ones.

    Raises:
        SystemExit: if the folder holds results of other settings.
    """
    path, text = results / name, json.dumps(settings, indent=1)
    if path.exists() and (stored := json.loads(path.read_text())) != json.loads(text):
        raise SystemExit(f"{results} holds results of other settings, {stored}: delete them, or name another folder")
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def fingerprint_as_stored(results: Path, pipeline: Any, name: str = "settings.json") -> str:
    """Return the fingerprint of a model, in the version that the settings of a folder of results have."""
    path = results / name
    stored = json.loads(path.read_text()).get("fingerprint") if path.exists() else None
    return fingerprint(pipeline, fingerprint_version(stored)) if isinstance(stored, str) else fingerprint(pipeline)


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)
