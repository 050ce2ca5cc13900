"""What the training recipes share: the order of the examples, a curve with a progress bar, and checkpoints."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CHECKPOINT_SECONDS = 300
"""Least time between two checkpoints."""


def batch(chosen: Tensor, size: int, step: int, seed: int) -> Tensor:
    """The indices of a step: each epoch is a seeded permutation of the chosen ones, the same in a resumed run."""
    epoch, position = divmod(step, len(chosen) // size)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return chosen[order[position * size : (position + 1) * size]]


def rate_at(step: int, cycles: tuple[int, ...], warmup: int, decay: float) -> float:
    """Share of the learning rate: in every cycle warm up, hold, then fall to zero over its last `decay` share."""
    for cycle in cycles:
        if step < cycle:
            return min(1.0, (step + 1) / warmup, (cycle - step) / (decay * cycle))
        step -= cycle
    return 0.0


def average_into(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move the averaged weights towards the model's: `keep` of the old ones stay."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)


class FloatAttention(TorchFunctionMode):
    """Attention in float32 under autocast: on a CPU its backward pass takes a quarter of the bfloat16 time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            with torch.autocast("cpu", enabled=False):
                args, kwargs = _in_float(args), {k: _in_float([v])[0] for k, v in (kwargs or {}).items()}
                return func(*args, **kwargs)
        return func(*args, **(kwargs or {}))


def _in_float(values: Sequence[Any]) -> list[Any]:
    return [v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


class Curve:
    """A progress bar, and the training curve as a CSV of (step, seconds, mean loss of the last 50 steps)."""

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
        """Note the loss of a step.

        Raises:
            FloatingPointError: for a loss that is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss}: lower the learning rate")
        self.recent.append(loss)
        if len(self.recent) == 50:
            mean = sum(self.recent) / 50
            with self.path.open("a") as file:
                file.write(f"{step + 1},{time.monotonic() - self.began:.0f},{mean:.5f}\n")
            self.progress.update(self.task, loss=mean)
            self.recent.clear()
        self.progress.update(self.task, completed=step + 1)


def save_checkpoint(path: Path, step: int, **parts: Any) -> None:
    """Write the states of modules and optimizers whole or not at all; `step` is the next one to do."""
    state = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
