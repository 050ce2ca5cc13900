"""Sample a pipeline, with one seed per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image

from entropy_probe.models.failures import report_model_errors
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
    """Sample one image per prompt and seed, in one batch.

    The initial noise of an image depends only on its seed and size. It is sampled on the CPU for all devices.

    Args:
        pipeline: a diffusers text-to-image pipeline.
        prompts: texts.
        size: (height, width) in pixels.
        seeds: one seed per prompt.
        steps: number of sampling steps.
        guidance_scale: scale of classifier-free guidance; 1 disables it.

    Raises:
        InputError: if the pipeline fails for a reason other than lack of memory.

    >>> import entropy_probe as ep
    >>> images = sample_images(ep.reference.load(), ["noto dog"], (32, 48), [0], steps=1, guidance_scale=4.0)
    >>> images[0].size  # (width, height)
    (48, 32)
    """
    with report_model_errors(pipeline, size):
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
