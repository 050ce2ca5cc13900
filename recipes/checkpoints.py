"""Write and restore the checkpoints of a training run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, step: int, **parts: Any) -> None:
    """Write the state of modules, optimizers and schedules atomically.

    Args:
        path: the checkpoint file.
        step: the next step to run.
        parts: objects with a `state_dict`, by the name that `load_checkpoint` uses.
    """
    state = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def load_checkpoint(path: Path, **parts: Any) -> int:
    """Restore the parts that `save_checkpoint` wrote.

    Returns:
        The next step to run: 0 if the file does not exist.
    """
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
