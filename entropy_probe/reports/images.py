"""Which prompts to show: those whose images the laws change most, and least."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from entropy_probe.models import Size
from entropy_probe.runs import Sweep

LOOKED_AT = 32
"""Prompts whose images are compared at most: reading the images of a large run would take minutes."""


def chosen_prompts(sweep: Sweep, count: int) -> list[tuple[str, float]]:
    """Up to `count` prompts and how much the laws change their images, most first: half of them most, half least.

    The first ones, with 0, where there is one law or one size only.
    """
    prompts = sweep.grid.prompts[:LOOKED_AT]
    if len(sweep.grid.laws) < 2 or sweep.grid.sizes == (sweep.manifest.training_size,):
        return [(prompt, 0.0) for prompt in prompts[:count]]
    ranked = sorted(((prompt, _difference(sweep, prompt)) for prompt in prompts), key=lambda pair: -pair[1])
    return ranked if len(ranked) <= count else ranked[: count - count // 2] + ranked[-(count // 2) :]


def _difference(sweep: Sweep, prompt: str) -> float:
    """Mean difference of the pixels of the first seed from the original's, over laws and new sizes; 1 is full scale."""
    first, *others = [law.name for law in sweep.grid.laws]
    seed = sweep.grid.seeds[0]

    def pixels(size: Size, law: str) -> Float[np.ndarray, "height width 3"]:
        return np.asarray(sweep.image(prompt, size, seed, law), dtype=np.float32) / 255

    elsewhere = [size for size in sweep.grid.sizes if size != sweep.manifest.training_size]
    differences = [np.abs(pixels(s, law) - pixels(s, first)).mean() for s in elsewhere for law in others]
    return float(np.mean(differences))
