"""Tables of the command line."""

import math

from rich.console import Console

from entropy_probe.cli.output import make_table


def printed(rows):
    """Return the cells of each line of a table as the terminal shows them."""
    console = Console(width=80, color_system=None)
    with console.capture() as output:
        console.print(make_table(rows))
    lines = [line for line in output.get().splitlines() if "│" in line or "┃" in line]
    return [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]


def test_zero_and_false_are_printed():
    rows = [{"layer": "mid", "count": 0, "entropy": 0.0, "known": False}]
    assert printed(rows) == [["layer", "count", "entropy", "known"], ["mid", "0", "0.000", "False"]]


def test_missing_values_are_empty_or_nan():
    rows = [{"layer": "mid", "tokens": None, "kind": "", "entropy": math.nan}]
    assert printed(rows)[1] == ["mid", "", "", "nan"]


def test_table_without_rows_prints_nothing():
    assert printed([]) == []
