"""Progress in a file and in a terminal, and the estimated time left."""

import re
from io import StringIO

from rich.console import Console

from entropy_probe.progress import progress, track


def test_file_gets_one_line_per_step(capsys):
    with progress(16, "sampling cells", done=8) as advance:
        assert capsys.readouterr().err == ""
        advance(4, "paper 64")
        assert re.fullmatch(r"sampling cells: 12 of 16, paper 64, about 0 s left\n", capsys.readouterr().err)
        advance(4, "paper 128x64")
    assert capsys.readouterr() == ("", "sampling cells: 16 of 16, paper 128x64\n")


def test_time_left_ignores_items_finished_earlier(capsys, monkeypatch):
    clock = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress(10, "sampling cells", done=4) as advance:
        advance(1, "")
        advance(4, "")
    assert capsys.readouterr().err == (
        "sampling cells: 5 of 10, about 5 min left\nsampling cells: 9 of 10, about 24 s left\n"
    )


def test_time_left_uses_work_of_items(capsys, monkeypatch):
    clock = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress(3, "sampling cells", work=1 + 1 + 4) as advance:
        advance(1, "original 64", 1)
        advance(1, "original 64", 1)
        advance(1, "original 128", 4)
    assert capsys.readouterr().err == (
        "sampling cells: 1 of 3, original 64, about 5 min left\n"
        "sampling cells: 2 of 3, original 64, about 4 min left\n"
        "sampling cells: 3 of 3, original 128\n"
    )


def test_terminal_gets_bar_with_time_left(monkeypatch):
    console = Console(file=StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr("entropy_probe.progress.Console", lambda stderr: console)
    clock = iter([0.0, 60.0])
    monkeypatch.setattr("entropy_probe.progress.time.monotonic", lambda: next(clock, 60.0))
    with progress(8, "sampling cells", done=2) as advance:
        advance(2, "paper 64")
    (last,) = (line for line in console.file.getvalue().splitlines() if "paper 64" in line)
    assert "4/8" in last
    assert "about 2 min left" in last


def test_bar_names_its_stage_and_fits_80_columns(monkeypatch, capsys):
    with progress(2, "scoring images", shown="validate") as advance:
        advance(1, "paper 128x128")
    assert capsys.readouterr().err.startswith("validate, scoring images: 1 of 2, paper 128x128")
    console = Console(file=StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr("entropy_probe.progress.Console", lambda stderr: console)
    with progress(20, "scoring images", shown="validate") as advance:
        advance(2, "paper 128x128")
    assert "validate, scoring images: paper 128x128" in console.file.getvalue()
    assert "…" not in console.file.getvalue()


def test_track_yields_items_and_can_be_silent(capsys):
    assert list(track([3, 4], "judging", shown=False)) == [3, 4]
    assert capsys.readouterr().err == ""
    assert list(track([3, 4], "judging")) == [3, 4]
    assert capsys.readouterr().err.splitlines()[-1] == "judging: 2 of 2"


def test_track_uses_work_of_items(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 60.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert list(track([1, 5, 6], "judging", work=float)) == [1, 5, 6]
    assert capsys.readouterr().err == (
        "judging: 1 of 3, about 2 min left\njudging: 2 of 3, about 60 s left\njudging: 3 of 3\n"
    )
