"""Shared parts of the training recipes: order of the examples, learning rate, weight average, curve."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode


def batch_indices(chosen: Tensor, size: int, step: int, seed: int) -> Tensor:
    """Return the indices of the examples of one step.

    Each epoch is a permutation of `chosen` that depends only on the seed and the epoch, so a resumed run sees the same
    batches as an uninterrupted one.
    """
    epoch, position = divmod(step, len(chosen) // size)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return chosen[order[position * size : (position + 1) * size]]


def rate_factor(step: int, cycles: tuple[int, ...], warmup: int, decay: float) -> float:
    """Return the factor of the learning rate at a step.

    Every cycle warms up linearly over `warmup` steps, holds, and falls linearly to zero over its last `decay` fraction.
    """
    for cycle in cycles:
        if step < cycle:
            return min(1.0, (step + 1) / warmup, (cycle - step) / (decay * cycle))
        step -= cycle
    return 0.0


def cyclic_schedule(optimizer: Optimizer, cycles: tuple[int, ...], warmup: int, decay: float) -> LambdaLR:
    """Return the schedule of `rate_factor` for an optimizer."""
    return LambdaLR(optimizer, partial(rate_factor, cycles=cycles, warmup=warmup, decay=decay))


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of the weights of a model, equal to the model at first.

    The average after update n keeps the fraction min(decay, n / (9 + n)) of the previous average.
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        count = int(updates)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, count / (9 + count)))

    average = AveragedModel(model, multi_avg_fn=update)
    average.update_parameters(model)  # the first call copies the weights and starts the count of updates
    return average.requires_grad_(False)


class FloatAttention(TorchFunctionMode):
    """Compute attention in float32 under autocast.

    On a CPU its backward pass takes a quarter of the time that it takes in bfloat16.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            with torch.autocast("cpu", enabled=False):
                args, kwargs = _to_float(args), {k: _to_float([v])[0] for k, v in (kwargs or {}).items()}
                return func(*args, **kwargs)
        return func(*args, **(kwargs or {}))


def _to_float(values: Sequence[Any]) -> list[Any]:
    return [v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


class Curve:
    """Show a progress bar and append to a CSV file: step, seconds, mean loss of the last 50 steps."""

    def __init__(self, path: Path, name: str, total: int, start: int = 0) -> None:
        self.path, self.start = path, start
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"))
        self.task = self.progress.add_task(name, total=total, completed=start, loss=math.nan)
        self.recent: list[float] = []

    def __enter__(self) -> Curve:
        self.began = time.monotonic()
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def add(self, step: int, loss: float) -> None:
        """Record the loss of a step.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss of step {step} must be finite, got {loss}: lower the learning rate")
        self.recent.append(loss)
        if len(self.recent) == 50:
            mean = sum(self.recent) / 50
            with self.path.open("a") as file:
                file.write(f"{step + 1},{time.monotonic() - self.began:.0f},{mean:.5f}\n")
            self.progress.update(self.task, loss=mean)
            self.recent.clear()
        self.progress.update(self.task, completed=step + 1)
