"""The errors that name a cause and a remedy; the command line prints them in one line and exits with 2."""

from __future__ import annotations


class InputError(ValueError):
    """What the caller gave cannot be used: a model, a size, a law, a file."""


class CaptureError(RuntimeError):
    """Attention could not be measured as asked."""


class IncompleteError(RuntimeError):
    """Some cells of a sweep could not be sampled; the others are on disk.

    Attributes:
        reason: why the first of them could not.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
