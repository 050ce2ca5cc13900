"""Sampling a pipeline, one seed an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image

from entropy_probe.models.sizes import Size, at_exact_size


def sample_images(
    pipeline: Any,
    prompts: Sequence[str],
    size: Size,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
) -> list[Image]:
    """Draw one image for each prompt and its seed, in one batch.

    The noise of an image depends on its seed and size alone: it is drawn on the CPU, whatever the device.
    """
    images: list[Image] = pipeline(
        prompt=list(prompts),
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **at_exact_size(pipeline),
    ).images
    return images
