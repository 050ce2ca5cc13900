"""Where a callback writes its numbers: TensorBoard, W&B, MLflow, accelerate, or any function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from entropy_probe.errors import InputError

Log = Callable[[dict[str, float], int], object]
"""Receives numbers by name, and the training step."""

Destination = Any
"""An object that logs numbers, see `log_function`, or a function of the kind `Log`."""


def log_function(destination: Destination) -> Log:
    """Return the function that logs numbers to an object. The library of the object is not imported.

    Args:
        destination: a `SummaryWriter` of TensorBoard (`add_scalar`), the module `mlflow` or a logger of Lightning
            (`log_metrics`), a run of W&B, the module `wandb` or an `Accelerator` (`log`), or a function of values and
            step.

    Raises:
        InputError: for any other object.

    >>> logged = []
    >>> log_function(lambda values, step: logged.append((step, values)))({"entropy/mean": 3.5}, 100)
    >>> logged
    [(100, {'entropy/mean': 3.5})]
    """
    if hasattr(destination, "add_scalar"):
        return lambda values, step: _add_scalars(destination, values, step)
    if hasattr(destination, "log_metrics"):
        return lambda values, step: destination.log_metrics(values, step=step)
    if hasattr(destination, "log"):
        return lambda values, step: destination.log(values, step=step)
    if callable(destination):
        return lambda values, step: destination(values, step)
    raise InputError(
        "log must be a SummaryWriter, mlflow, a W&B run, an Accelerator or a function of (values, step), got "
        f"{destination!r:.100}"
    )


def _add_scalars(writer: Any, values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        writer.add_scalar(name, value, step)
