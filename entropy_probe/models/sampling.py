"""Sample a pipeline, with one seed per image or video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from entropy_probe.models.failures import report_model_errors
from entropy_probe.models.outputs import Clip, clips, middle
from entropy_probe.models.pipeline_call import call_arguments, explain_missing
from entropy_probe.models.sizes import Size


def sample_images(
    pipeline: Any,
    prompts: Sequence[str],
    size: Size,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
    pipeline_kwargs: Mapping[str, Any] | None = None,
) -> list[Image]:
    """Sample one image per prompt and seed, in one batch. Of a video, return the middle frame; see `sample_clips`.

    The arguments are those of `sample_clips`.

    Raises:
        InputError: see `sample_clips`.

    >>> import entropy_probe as ep
    >>> images = sample_images(ep.reference.load(), ["noto dog"], (32, 48), [0], steps=1, guidance_scale=4.0)
    >>> images[0].size  # (width, height)
    (48, 32)
    """
    sampled = sample_clips(
        pipeline,
        prompts,
        size,
        seeds,
        steps=steps,
        guidance_scale=guidance_scale,
        pipeline_kwargs=pipeline_kwargs,
    )
    return [middle(clip) for clip in sampled]


def sample_clips(
    pipeline: Any,
    prompts: Sequence[str],
    size: Size,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
    pipeline_kwargs: Mapping[str, Any] | None = None,
) -> list[Clip]:
    """Sample one image or video per prompt and seed, in one batch.

    The initial noise of an image depends only on its seed and size. It is sampled on the CPU for all devices.

    Args:
        pipeline: a diffusers pipeline that samples images or videos.
        prompts: texts; not used by a pipeline without prompts.
        size: (height, width) in pixels.
        seeds: one seed per prompt.
        steps: number of sampling steps.
        guidance_scale: scale of classifier-free guidance; 1 disables it.
        pipeline_kwargs: further arguments of the pipeline's call, such as `image`. Images are resized to `size`.

    Returns:
        The frames of each sample. An image has one.

    Raises:
        InputError: if the pipeline needs an argument that is missing, or fails for a reason other than lack of memory.

    >>> import entropy_probe as ep
    >>> clips = sample_clips(ep.reference.load(), ["noto dog"], (32, 48), [0], steps=1, guidance_scale=4.0)
    >>> [len(clip) for clip in clips]
    [1]
    """
    given = pipeline_kwargs or {}
    arguments = call_arguments(pipeline, prompts, size, seeds, steps, guidance_scale, given)
    with report_model_errors(pipeline, size), explain_missing(pipeline, given):
        output = pipeline(**arguments)
    return clips(output, len(seeds))
