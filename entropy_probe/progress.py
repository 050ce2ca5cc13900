"""How far a long task is, on standard error: a bar on a terminal and in a notebook, lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

Advance = Callable[[int, str], None]
"""Told how many more are done, and what they were."""


@contextmanager
def progress(total: int, task: str, *, done: int = 0, shown: bool = True) -> Iterator[Advance]:
    """Show how many of `total` are done, and the time left.

    Args:
        total: how many there are.
        task: what is done to them.
        done: how many were done before.
        shown: or nothing at all.
    """
    console = Console(stderr=True)
    if not shown:
        yield lambda count, what: None
    elif console.is_terminal or console.is_jupyter:
        with _bar(console) as bar:
            number = bar.add_task(task, total=total, completed=done)
            yield lambda count, what: bar.update(number, advance=count, description=what or task)
    else:
        yield _lines(total, task, done)


def track(items: Sequence[T], task: str, *, shown: bool = True) -> Iterator[T]:
    """The items, one after the other, with their progress."""
    with progress(len(items), task, shown=shown) as advance:
        for item in items:
            yield item
            advance(1, "")


def _bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console)


def _lines(total: int, task: str, done: int) -> Advance:
    began, at = time.monotonic(), done

    def advance(count: int, what: str) -> None:
        nonlocal at
        at += count
        seconds = (time.monotonic() - began) / max(1, at - done) * (total - at)
        left = f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"
        parts = [f"{task}: {at} of {total}", *([what] if what else []), *([left] if at < total else [])]
        sys.stderr.write(", ".join(parts) + "\n")
        sys.stderr.flush()

    return advance
