"""How far a long task is, on standard error: a bar on a terminal and in a notebook, lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")


class Advance(Protocol):
    """Told what was done."""

    def __call__(self, count: int, what: str, work: float | None = None) -> None:
        """Note that things were done.

        Args:
            count: how many.
            what: they were.
            work: that they took, in the unit of all of it; their count, if none is given.
        """


@contextmanager
def progress(
    total: int, task: str, *, done: int = 0, work: float | None = None, shown: bool = True
) -> Iterator[Advance]:
    """Show how many of `total` are done, and the time left, which is told anew whenever something is done.

    Args:
        total: how many there are.
        task: what is done to them.
        done: how many were done before.
        work: that those left will take, in any unit, where some take longer than others; their count, if none is given.
        shown: or nothing at all.
    """
    console = Console(stderr=True)
    left = _left(total - done if work is None else work)
    if not shown:
        yield lambda count, what, work=None: None
    elif console.is_terminal or console.is_jupyter:
        with _bar(console) as bar:
            number = bar.add_task(task, total=total, completed=done, left="")

            def advance(count: int, what: str, work: float | None = None) -> None:
                bar.update(number, advance=count, description=what or task, left=left(count if work is None else work))

            yield advance
    else:
        yield _lines(total, task, done, left)


def track(
    items: Sequence[T], task: str, *, work: Callable[[T], float] = lambda item: 1.0, shown: bool = True
) -> Iterator[T]:
    """The items, one after the other, with their progress; `work` says what one takes, in any unit."""
    with progress(len(items), task, work=sum(map(work, items)), shown=shown) as advance:
        for item in items:
            yield item
            advance(1, "", work(item))


def _bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TextColumn("{task.fields[left]}"), console=console)


def _left(work: float) -> Callable[[float], str]:
    """Told after every step how much work it was, says in words how long the rest will take at the same pace."""
    began, done = time.monotonic(), 0.0

    def left(step: float) -> str:
        nonlocal done
        done += step
        if done >= work or done == 0:
            return ""
        seconds = (time.monotonic() - began) / done * (work - done)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    return left


def _lines(total: int, task: str, done: int, left: Callable[[float], str]) -> Advance:
    at = done

    def advance(count: int, what: str, work: float | None = None) -> None:
        nonlocal at
        at += count
        parts = f"{task}: {at} of {total}", what, left(count if work is None else work)
        sys.stderr.write(", ".join(part for part in parts if part) + "\n")
        sys.stderr.flush()

    return advance
