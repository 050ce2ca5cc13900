"""Choose what Ctrl-C does while the command line runs."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

INTERRUPTED_MESSAGE = "interrupted: finished samples are kept. Rerun the same command to resume."


def exit_on_interrupt() -> None:
    """End the process at once on Ctrl-C. Use this while libraries are imported and no work can be lost.

    A KeyboardInterrupt inside the import of torch can abort the process or disappear.
    """

    def leave(*_: object) -> None:
        os.write(2, f"{INTERRUPTED_MESSAGE}\n".encode())
        os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def raise_on_interrupt() -> None:
    """Raise KeyboardInterrupt on Ctrl-C, as Python does by default. A process that ignores Ctrl-C keeps ignoring it."""
    if callable(signal.getsignal(signal.SIGINT)):  # not callable under nohup, which ignores the signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
