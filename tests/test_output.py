"""Tables of the command line."""

import math
from io import StringIO
from types import SimpleNamespace

from rich.console import Console

from entropy_probe.cli.output import closing_rows, make_table, print_line, print_table
from entropy_probe.evaluation import Drift


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


WIDE = [{"layer": "mid", "training_tokens": 256, **{f"grid at {n}x{2 * n}": f"{n}x{2 * n}" for n in range(64, 72)}}]


def test_table_in_a_file_has_whole_headings():
    console = Console(file=StringIO(), width=80)
    print_table(console, make_table(WIDE))
    heading = console.file.getvalue().splitlines()[1]
    assert [part.strip() for part in heading.strip("┃").split("┃")] == ["layer", "training tokens", *[*WIDE[0]][2:]]


def test_table_in_a_terminal_keeps_its_width_and_shortens_nothing():
    console = Console(file=StringIO(), width=60, force_terminal=True, color_system=None)
    print_table(console, make_table(WIDE))
    assert "…" not in console.file.getvalue()
    assert max(map(len, console.file.getvalue().splitlines())) == 60


def test_table_with_sizes_explains_their_order():
    console = Console(file=StringIO(), width=80)
    print_table(console, make_table([{"size": "64"}]))
    assert "height x width" not in console.file.getvalue()
    print_table(console, make_table([{"size": "64x128"}]))
    assert "Sizes and grids are height x width." in " ".join(console.file.getvalue().split())


def test_terminal_breaks_lines_between_words():
    text = "removed by the paper law: 94 % [91, 97] at /a/long-path/to/report.html, 12 % at 64x128"
    file, terminal = (Console(file=StringIO(), width=30, force_terminal=on, color_system=None) for on in (False, True))
    for console in (file, terminal):
        print_line(console, text)
    assert file.file.getvalue() == text + "\n"
    assert "/a/long-path/to/report.html," in terminal.file.getvalue().split()
    assert terminal.file.getvalue().split() == text.split()
    assert max(map(len, terminal.file.getvalue().splitlines())) <= 30


def test_closing_table_has_a_verdict_for_each_size_and_law():
    def drift(law, removed, low, high, level="layer"):
        numbers = {"drift": 1.0, "low": 0.9, "high": 1.1, "noise": 0.01}
        return Drift(
            law=law, size=(64, 128), level=level, removed=removed, removed_low=low, removed_high=high, **numbers
        )

    drifts = drift("original", 0, 0, 0), drift("paper", 0.9, 0.8, 0.95), drift("log", 0.1, -0.2, 0.3)
    drifts += drift("bad", -0.5, -0.6, -0.4), drift("paper", 0.5, 0.4, 0.6, "head")
    scores = [
        SimpleNamespace(law="paper", size=(64, 128), verdict=verdict) for verdict in ("better", "worse", "better")
    ]
    rows = closing_rows(SimpleNamespace(drifts=drifts, quality=SimpleNamespace(comparisons=scores)))
    assert [(row["law"], row["drift"]) for row in rows] == [
        ("paper", "smaller"), ("log", "undecided"), ("bad", "larger"),
    ]  # fmt: skip
    assert rows[0] == {
        "size": "64x128",
        "law": "paper",
        "drift removed, %": "90",
        "95 % interval": "80 to 95",
        "drift": "smaller",
        "image scores": "2 better, 1 worse",
    }
