"""Progress where standard error is a file, as a person reads it there while the work goes on."""

import re

from entropy_probe.progress import progress, track


def test_a_file_gets_a_line_for_every_step(capsys):
    with progress(16, "sampling cells", done=8) as advance:
        assert capsys.readouterr().err == ""
        advance(4, "paper 64")
        assert re.fullmatch(r"sampling cells: 12 of 16, paper 64, about 0 s left\n", capsys.readouterr().err)
        advance(4, "paper 128x64")
    assert capsys.readouterr() == ("", "sampling cells: 16 of 16, paper 128x64\n")


def test_the_time_left_goes_by_what_was_done_here(capsys, monkeypatch):
    clock = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress(10, "sampling cells", done=4) as advance:
        advance(1, "")
        advance(4, "")
    assert capsys.readouterr().err == (
        "sampling cells: 5 of 10, about 5 min left\nsampling cells: 9 of 10, about 24 s left\n"
    )


def test_items_come_through_and_quiet_is_quiet(capsys):
    assert list(track([3, 4], "judging", shown=False)) == [3, 4]
    assert capsys.readouterr().err == ""
    assert list(track([3, 4], "judging")) == [3, 4]
    assert capsys.readouterr().err.splitlines()[-1] == "judging: 2 of 2"
