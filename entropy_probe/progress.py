"""Show the progress of long tasks on standard error: a bar in a terminal or notebook, one line per step in a file."""

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
    """Function that records finished items."""

    def __call__(self, count: int, label: str, work: float | None = None) -> None:
        """Record finished items.

        Args:
            count: number of finished items.
            label: short description of these items.
            work: work that they took, in the unit of the total work. By default, their number.
        """


@contextmanager
def progress(
    total: int, task: str, *, done: int = 0, work: float | None = None, shown: bool | str = True
) -> Iterator[Advance]:
    """Show the number of finished items and the estimated time left.

    Args:
        total: number of items.
        task: name of the task, such as "sampling cells".
        done: number of items that were finished earlier.
        work: work that the remaining items take, in any unit. By default, their number. Give it if some items take
            longer than others.
        shown: if False, show nothing. A text is the stage that the task belongs to, such as "validate".

    >>> with progress(3, "sampling cells", shown=False) as advance:
    ...     advance(1, "paper 64")
    """
    console = Console(stderr=True)
    title = f"{shown}, {task}" if isinstance(shown, str) else task
    time_left = _time_left(total - done if work is None else work)
    if not shown:
        yield lambda count, label, work=None: None
    elif console.is_terminal or console.is_jupyter:
        with _bar(console) as bar:
            number = bar.add_task(title, total=total, completed=done, left="")

            def advance(count: int, label: str, work: float | None = None) -> None:
                left = time_left(count if work is None else work)
                bar.update(number, advance=count, description=f"{title}: {label}" if label else title, left=left)

            yield advance
    else:
        yield _lines(total, title, done, time_left)


def track(
    items: Sequence[T], task: str, *, work: Callable[[T], float] = lambda item: 1.0, shown: bool | str = True
) -> Iterator[T]:
    """Iterate over items and show the progress.

    Args:
        items: the items.
        task: name of the task.
        work: function that returns the work one item takes, in any unit. By default, all items take the same.
        shown: see `progress`.

    >>> list(track([3, 4], "judging images", shown=False))
    [3, 4]
    """
    with progress(len(items), task, work=sum(map(work, items)), shown=shown) as advance:
        for item in items:
            yield item
            advance(1, "", work(item))


def _bar(console: Console) -> Progress:
    bar = BarColumn(bar_width=None)  # takes the width that the texts leave
    columns = TextColumn("{task.description}"), bar, MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TextColumn("{task.fields[left]}"), console=console, expand=True)


def _time_left(total: float) -> Callable[[float], str]:
    """Return a function that adds finished work and returns the time left, such as "about 4 min left"."""
    start, done = time.monotonic(), 0.0

    def time_left(work: float) -> str:
        nonlocal done
        done += work
        if done >= total or done == 0:
            return ""
        seconds = (time.monotonic() - start) / done * (total - done)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    return time_left


def _lines(total: int, task: str, done: int, time_left: Callable[[float], str]) -> Advance:
    finished = done

    def advance(count: int, label: str, work: float | None = None) -> None:
        nonlocal finished
        finished += count
        parts = f"{task}: {finished} of {total}", label, time_left(count if work is None else work)
        sys.stderr.write(", ".join(part for part in parts if part) + "\n")
        sys.stderr.flush()

    return advance
