"""Choose the prompts whose images a report shows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from entropy_probe.models import Size
from entropy_probe.runs import Sweep

COMPARED_PROMPTS = 32
"""Maximum number of prompts whose images are compared. Reading all images of a large run would take minutes."""


def chosen_prompts(sweep: Sweep, count: int) -> list[tuple[str, float]]:
    """Return up to `count` prompts: half whose images the laws change most, half whose images they change least.

    Args:
        sweep: the sampled grid.
        count: maximum number of prompts.

    Returns:
        Prompts with the mean change of their pixels, in decreasing order; 1 is the full range of a pixel. With one law,
        or with the training size only, the first prompts with a change of 0.
    """
    prompts = sweep.grid.prompts[:COMPARED_PROMPTS]
    if len(sweep.grid.laws) < 2 or sweep.grid.sizes == (sweep.manifest.training_size,):
        return [(prompt, 0.0) for prompt in prompts[:count]]
    ranked = sorted(((prompt, _difference(sweep, prompt)) for prompt in prompts), key=lambda pair: -pair[1])
    return ranked if len(ranked) <= count else ranked[: count - count // 2] + ranked[-(count // 2) :]


def _difference(sweep: Sweep, prompt: str) -> float:
    """Compute the mean pixel difference from the original, first seed, over the laws and the new sizes."""
    first, *others = [law.name for law in sweep.grid.laws]
    seed = sweep.grid.seeds[0]

    def pixels(size: Size, law: str) -> Float[np.ndarray, "height width 3"]:
        return np.asarray(sweep.image(prompt, size, seed, law), dtype=np.float32) / 255

    elsewhere = [size for size in sweep.grid.sizes if size != sweep.manifest.training_size]
    differences = []
    for size in elsewhere:
        original = pixels(size, first)
        differences += [np.abs(pixels(size, law) - original).mean() for law in others]
    return float(np.mean(differences))
