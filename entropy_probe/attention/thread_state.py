"""The state of the forward pass that a thread runs."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint as checkpointing

from entropy_probe.attention.by_hand import ByHand
from entropy_probe.attention.call import Forward
from entropy_probe.attention.joint import ImageSource, Join
from entropy_probe.attention.latents import Latents
from entropy_probe.errors import CaptureError

InputSize = tuple[str, Latents | tuple[torch.Size, ...]]
"""The denoiser that runs, and its latents, or the shapes of its tensors if it has no latents."""


@dataclass
class Running:
    """A module whose forward runs, and the arguments that it received."""

    name: str
    is_attention: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: ImageSource
    saved_tensor_hooks: object

    def refuse_checkpoint(self) -> None:
        """Refuse to scale a call in a gradient checkpoint that starts inside this module.

        The backward pass would compute the checkpoint again, outside of the hooked layer and so without the law.

        Raises:
            CaptureError: naming the module.
        """
        if self.saved_tensor_hooks is not None and saved_tensor_hooks() != self.saved_tensor_hooks:
            raise CaptureError(
                f"{self.name or 'the model itself'} computes its attention in a gradient checkpoint, so a law would "
                "give wrong gradients: checkpoint the whole layer or block, or compute without gradients"
            )


def saved_tensor_hooks() -> object:
    """Return the active hooks for saved tensors, () without any, and None if gradients are disabled.

    A gradient checkpoint changes this: the reentrant kind disables gradients, the other kind sets hooks.

    >>> saved_tensor_hooks()
    ()
    """
    if not torch.is_grad_enabled():
        return None
    top: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return _checkpoints() if top is None else top(True) or ()


def _checkpoints() -> tuple[int, ...]:
    """Return the running gradient checkpoints. torch 2.5 cannot return the hooks, so they are found on the stack."""
    found: list[int] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "checkpoint" and frame.f_code.co_filename == checkpointing.__file__:
            found.append(id(frame))
        frame = frame.f_back
    return tuple(found)


class ThreadState(threading.local):
    """The state of one denoiser in each thread.

    Attributes:
        forward: the forward of the denoiser that runs; None outside one.
        finished: the same pass without its arguments, for layers that run again after it is over.
        size: size of the denoiser's input.
        discovering: this size is new, so every module is watched for attention calls.
        running: the hooked modules that run, outermost first.
        joins: the concatenations of this pass, by total length.
        items: number of batch items that each layer has attended for in this pass.
        left: first item of the batch that a wrapper of the denoiser passed on, by the number of items.
        by_hand: follows the attention that modules compute by hand in this pass.
    """

    def __init__(self) -> None:
        self.forward: Forward | None = None
        self.finished: Forward | None = None
        self.size: InputSize = ("", ())
        self.discovering = False
        self.running: list[Running] = []
        self.joins: dict[int, Join] = {}
        self.items: Counter[str] = Counter()
        self.left: dict[int, int | None] = {}
        self.by_hand = ByHand()

    def caller(self) -> Running:
        """Return the module that a call belongs to: the innermost attention layer, or else the innermost module."""
        inner = self.running[-1]
        return next((running for running in reversed(self.running) if running.is_attention), inner)
