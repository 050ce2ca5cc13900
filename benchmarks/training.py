"""Time of a training step under `EntropyMonitor`, relative to a plain one: `python -m benchmarks training`."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.measure import default_clock, four_digits, time_in_rounds
from benchmarks.models import pipeline
from entropy_probe.callbacks import EntropyMonitor

EVERY = 100
"""Steps from one measured step to the next."""

CASES = (("reference", 64, 8), ("reference", 128, 4), ("sd15", 256, 1))
"""Model, image size in pixels, and batch."""

LATENT = {"reference": 4, "sd15": 8}
"""Pixels per latent pixel."""


def training_step(model: str, size: int, batch: int) -> tuple[Any, Callable[[], None]]:
    """Return a denoiser, and a function that runs one training step of it."""
    unet = copy.deepcopy(pipeline(model).unet).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)
    side, width = size // LATENT[model], unet.config.cross_attention_dim
    latents = torch.randn(batch, unet.config.in_channels, side, side)
    texts, timesteps = torch.randn(batch, 16, width), torch.randint(0, 1000, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        unet(latents, timesteps, texts).sample.square().mean().backward()
        optimizer.step()

    return unet, step


def case(model: str, size: int, batch: int, seconds: float) -> dict[str, Any]:
    """Time one training step, plain and measured, and the context of a step that is not measured."""
    unet, step = training_step(model, size, batch)
    monitor = EntropyMonitor(unet, every=EVERY)
    numbers = iter(range(EVERY, 10**9, EVERY))

    def run(context: Callable[[], Any]) -> Callable[[], None]:
        def one() -> None:
            with context():
                step()

        return one

    times = time_in_rounds(
        {
            "plain": run(nullcontext),
            "measured": run(lambda: monitor.step(next(numbers))),
        },
        seconds,
        least=5,
    )
    return {
        "model": model,
        "size": size,
        "batch": batch,
        "every": EVERY,
        "seconds": times,
        "context": context(monitor),
    }


def context(monitor: EntropyMonitor, repeats: int = 10_000) -> float:
    """Return the seconds of the context of a step that is not measured."""
    clock = default_clock()
    began = clock()
    for _ in range(repeats):
        with monitor.step(1):
            pass
    return four_digits((clock() - began) / repeats)


def overhead(case: dict[str, Any]) -> float:
    """Return the time of `EVERY` steps, one of them measured, relative to plain steps."""
    plain, measured = (statistics.median(case["seconds"][way]) for way in ("plain", "measured"))
    return ((EVERY - 1) * (plain + case["context"]) + measured) / (EVERY * plain)


def run(quick: bool) -> dict[str, Any]:
    """Return the results of all cases."""
    cases = CASES[:1] if quick else CASES
    return {"cases": [case(*one, seconds=1 if quick else 40) for one in cases]}
