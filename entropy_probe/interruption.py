"""Ctrl-C where it does no harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until what is yielded is called, or the context closes; a second one comes through at once.

    Python raises KeyboardInterrupt between any two instructions. In the middle of torch that leaves its stack of modes
    broken, under C++ it aborts the process, and in a destructor it is lost: the work goes on to its end.

    Whatever handles the signal outside is what handles it then. Where it is ignored, or in another than the main
    thread, which gets no signals, nothing changes.
    """
    outer = signal.getsignal(signal.SIGINT)
    if not callable(outer) or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handle: Callable[[int, FrameType | None], object] = outer
    held: list[FrameType | None] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(frame)
        if len(held) > 1:
            let_through()

    def let_through() -> None:
        if held:
            frame = held.pop()
            held.clear()
            handle(signal.SIGINT, frame)

    signal.signal(signal.SIGINT, hold)
    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, outer)
        let_through()
