"""Print messages, tables and JSON."""

from __future__ import annotations

import json
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from entropy_probe.escape import for_terminal, one_line

if TYPE_CHECKING:
    import pandas as pd

    from entropy_probe.estimation import Calibration, Derivation
    from entropy_probe.evaluation import Outcome


class Messages:
    """Print messages for people on standard error, unless quiet.

    Attributes:
        progress: whether to show progress bars.
    """

    def __init__(self, quiet: bool) -> None:
        self.progress = not quiet
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    def stage(self, name: str) -> str | bool:
        """Return the argument `progress` of a stage: its name, or False without progress bars."""
        return self.progress and name

    def print(self, message: str | Table) -> None:
        """Print one line, in which control characters and line breaks are escaped, or a table."""
        if isinstance(message, str):
            print_line(self._console, message)
        else:
            print_table(self._console, message)

    def print_lines(self, text: str) -> None:
        """Print a text of several lines. The names in it must be escaped already."""
        self._console.print(for_terminal(text), markup=False, soft_wrap=True)


def print_line(console: Console, message: str) -> None:
    """Print one line. A terminal shows it on several lines, which break between words; a file gets one line."""
    text = one_line(message)
    if console.is_terminal:
        text = textwrap.fill(text, console.width, break_long_words=False, break_on_hyphens=False)
    console.print(text, markup=False, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table. In a terminal it has the width of the terminal, in a file the width that it needs."""
    if not console.is_terminal:
        wide = console.options.update(max_width=10_000)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def make_table(rows: list[dict[str, Any]]) -> Table:
    """Return rows as a table for the terminal. The keys of the first row are the headings; None is an empty cell."""
    table = Table(caption_justify="left")
    if any(re.search(r"\d+x\d+", str(text)) for row in rows for text in (*row, *row.values())):
        table.caption = "Sizes and grids are height x width."
    for number, name in enumerate(rows[0] if rows else ()):
        table.add_column(Text(one_line(name).replace("_", " ")), no_wrap=number == 0, overflow="fold")
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


def closing_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Return a row for each size and law: the fraction of the drift that the law removes, and the verdicts."""
    from entropy_probe.models import format_size
    from entropy_probe.plots.tables import removed_fraction

    compared = outcome.quality.comparisons if outcome.quality else ()
    rows = []
    for drift in outcome.drifts:
        if drift.level == "layer" and drift.law != "original":
            removed, interval = removed_fraction(drift).values()
            own = [c.verdict for c in compared if (c.law, c.size) == (drift.law, drift.size)]
            counts = {verdict: own.count(verdict) for verdict in own}
            row = {
                "size": format_size(drift.size),
                "law": drift.law,
                "drift removed, %": removed,
                "95 % interval": interval,
                "drift": "smaller" if drift.removed_low > 0 else "larger" if drift.removed_high < 0 else "undecided",
            }
            images = {"image scores": ", ".join(f"{count} {verdict}" for verdict, count in counts.items())}
            rows.append(row | (images if compared else {}))
    return rows


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
