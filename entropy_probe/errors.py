"""Errors of this package. Every message has a cause and a fix. The command line prints it and exits with code 2."""

from __future__ import annotations


class InputError(ValueError):
    """An input is invalid: a model, a size, a law, a file or an argument."""


class MissingLibraryError(InputError, ImportError):
    """An optional library or the bundled models are not installed. The message says what to install."""


class CaptureError(RuntimeError):
    """Attention could not be measured."""


class IncompleteError(RuntimeError):
    """Some cells of a sweep could not be sampled. All other cells are on disk.

    Attributes:
        reason: why the first of these cells could not be sampled.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
