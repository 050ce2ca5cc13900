"""Print messages, tables and JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from entropy_probe.escape import for_terminal, one_line

if TYPE_CHECKING:
    import pandas as pd

    from entropy_probe.estimation import Calibration, Derivation


class Messages:
    """Print messages for people on standard error, unless quiet.

    Attributes:
        progress: whether to show progress bars.
    """

    def __init__(self, quiet: bool) -> None:
        self.progress = not quiet
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    def print(self, message: str | Table) -> None:
        """Print one line, in which control characters and line breaks are escaped, or a table."""
        if isinstance(message, str):
            self._console.print(one_line(message), markup=False, soft_wrap=True)
        else:
            self._console.print(message)

    def print_lines(self, text: str) -> None:
        """Print a text of several lines. The names in it must be escaped already."""
        self._console.print(for_terminal(text), markup=False, soft_wrap=True)


def make_table(rows: list[dict[str, Any]]) -> Table:
    """Return rows as a table for the terminal. The keys of the first row are the headings; None is an empty cell."""
    table = Table()
    for number, name in enumerate(rows[0] if rows else ()):
        table.add_column(Text(one_line(name)), no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(one_line(_cell(value))) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def layer_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table with shortened layer names."""
    from entropy_probe.models import short_name

    return [{**row, "layer": short_name(row["layer"])} for row in frame.to_dict("records")]


def factor_rows(derivation: Derivation) -> list[dict[str, Any]]:
    """Return the scale factor of each layer at each token count for which the law was derived."""
    from entropy_probe.laws import factors
    from entropy_probe.models import short_name

    measured = derivation.entropies
    wanted = sorted(set(measured["tokens"] / measured["training_tokens"]))
    rows: dict[str, dict[str, Any]] = {}
    for layer, ratio, factor, bound in factors(derivation, wanted).itertuples(index=False):
        shown = f"{bound} {factor:.3f}" if bound else factor
        rows.setdefault(layer, {"layer": short_name(layer)})[f"g at N/T = {ratio:.3g}"] = shown
    return list(rows.values())


def loss_change_rows(calibration: Calibration) -> list[dict[str, Any]]:
    """Return the change of the denoising loss at each size, with the change as a percentage."""
    return [{**row, "change": f"{row['change']:+.2%}"} for row in calibration.table().to_dict("records")]


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_verdict(sentences: Sequence[str], path: Path, as_json: bool, messages: Messages) -> None:
    """Print the verdict and the path of a saved report, and its JSON if requested."""
    if as_json:
        sys.stdout.write(path.with_name("report.json").read_text())
    for sentence in sentences:
        messages.print(sentence)
    messages.print(f"report: {path}")


def command_line() -> str:
    """Return the command that started this process, quoted for a shell."""
    return shlex.join(["entropy-probe", *sys.argv[1:]])
