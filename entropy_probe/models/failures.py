"""Report a model that cannot be sampled, because its configuration is damaged, as bad input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size

from entropy_probe.errors import CaptureError, InputError

_LIBRARIES = {"torch", "diffusers", "transformers", "tokenizers", "accelerate", "numpy", "PIL"}
"""Packages whose errors come from the configuration of a model. Others are of this package or of the user's code."""

_FORWARDING = f"{__name__.partition('.')[0]}.attention.modes"
"""The module through which the calls of a model reach torch while it is measured."""


def is_out_of_memory(error: Exception) -> bool:
    """Recognise lack of memory. oneDNN, which computes convolutions on a CPU, reports it without naming it.

    >>> is_out_of_memory(MemoryError())
    True
    """
    if isinstance(error, MemoryError) or "could not create a primitive" in str(error):
        return True
    return bool(should_reduce_batch_size(error))


@contextmanager
def report_model_errors(pipeline: Any, size: tuple[int, int]) -> Iterator[None]:
    """Turn errors of a pipeline into an InputError of one line. Errors of other code, such as hooks, are not changed.

    A configuration can have any value, and diffusers checks few of them. The error comes from wherever the value is
    used first.

    Args:
        pipeline: the pipeline that is called.
        size: (height, width) in pixels.

    Raises:
        InputError: with the name of the pipeline and the size.

    >>> import torch
    >>> with report_model_errors(object(), (64, 64)):
    ...     torch.nn.Identity()._call_impl()
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: object cannot sample 64x64 pixels: TypeError: ...
    """
    try:
        yield
    except Exception as error:  # tokenizers raises the class itself
        expected = isinstance(error, InputError | CaptureError | OSError) or is_out_of_memory(error)
        if expected or not _is_of_library(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"{type(pipeline).__name__} cannot sample {size[0]}x{size[1]} pixels: {reason}. Check the configuration of "
            "the model and the settings"
        ) from error


def _is_of_library(error: BaseException) -> bool:
    """Return whether an error was raised by a line of a library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__")) if trace else ""
    return module.partition(".")[0] in _LIBRARIES or module == _FORWARDING
