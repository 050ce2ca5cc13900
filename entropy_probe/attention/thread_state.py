"""The state of the forward that a thread runs."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from entropy_probe.attention.call import Forward
from entropy_probe.attention.joint import ImageSource, Join
from entropy_probe.attention.latents import Latents


@dataclass
class Running:
    """A module whose forward runs, and the arguments that it received."""

    name: str
    is_attention: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: ImageSource


class ThreadState(threading.local):
    """The state of one denoiser in each thread.

    Attributes:
        forward: the forward of the denoiser that runs; None outside one.
        finished: the same forward without its arguments, for layers that run again after it is over.
        size: size of the denoiser's input: its latents, or the shapes of its tensors if it has no latents.
        discovering: this size is new, so every module is watched for attention calls.
        running: the hooked modules that run, outermost first.
        joins: the concatenations of this forward, by total length.
        items: number of batch items that each layer has attended for in this forward.
    """

    def __init__(self) -> None:
        self.forward: Forward | None = None
        self.finished: Forward | None = None
        self.size: Latents | tuple[torch.Size, ...] = ()
        self.discovering = False
        self.running: list[Running] = []
        self.joins: dict[int, Join] = {}
        self.items: Counter[str] = Counter()

    def caller(self) -> Running:
        """Return the module that a call belongs to: the innermost attention layer, or else the innermost module."""
        inner = self.running[-1]
        return next((running for running in reversed(self.running) if running.is_attention), inner)
