"""Delay Ctrl-C until the process can handle it safely."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def delay_interrupt() -> Iterator[Callable[[], None]]:
    """Delay Ctrl-C until the context ends. Yield a function that delivers a pending Ctrl-C earlier.

    Python can raise KeyboardInterrupt between any two instructions. Inside torch this corrupts the stack of function
    modes, below a C++ call it aborts the process, and in a destructor it is ignored. A second Ctrl-C is delivered at
    once.

    The existing signal handler receives the signal. Nothing changes if Ctrl-C is ignored, or outside the main thread,
    which is the only thread that receives signals.

    >>> with delay_interrupt() as deliver:
    ...     deliver()  # raises KeyboardInterrupt here if Ctrl-C was pressed in the meantime
    """
    outer = signal.getsignal(signal.SIGINT)
    if not callable(outer) or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handle: Callable[[int, FrameType | None], object] = outer
    pending: list[FrameType | None] = []

    def delay(number: int, frame: FrameType | None) -> None:
        pending.append(frame)
        if len(pending) > 1:
            deliver()

    def deliver() -> None:
        if pending:
            frame = pending.pop()
            pending.clear()
            handle(signal.SIGINT, frame)

    signal.signal(signal.SIGINT, delay)
    try:
        yield deliver
    finally:
        signal.signal(signal.SIGINT, outer)
        deliver()
