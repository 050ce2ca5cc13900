"""The length of the videos that a model was trained on, in frames of tokens."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from entropy_probe.attention.latents import patch_sizes
from entropy_probe.errors import InputError

_REDUCTIONS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
"""Attributes that give the frames per latent frame, in different pipelines."""


def check_frames(frames: Any) -> None:
    """Check a number of frames.

    Raises:
        InputError: if it is neither None nor a positive integer.

    >>> check_frames(81)
    """
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise InputError(f"the number of frames must be a positive integer, got {frames!r:.100}")


def default_frames(pipeline: Any) -> int | None:
    """Return the number of frames in the signature of a pipeline: its training length. None for images.

    >>> class Pipeline:
    ...     def __call__(self, prompt, num_frames=81): ...
    >>> default_frames(Pipeline())
    81
    """
    if isinstance(pipeline, nn.Module):
        return None
    parameter = inspect.signature(type(pipeline).__call__).parameters.get("num_frames")
    return int(parameter.default) if parameter is not None and isinstance(parameter.default, int) else None


def training_token_frames(denoiser: nn.Module, pipeline: Any, frames: int | None = None) -> int | None:
    """Return the frames of tokens of a video in training. Autoencoders and patches make them fewer than its frames.

    Args:
        denoiser: the denoiser of the pipeline.
        pipeline: the pipeline, or the denoiser.
        frames: number of frames of the videos in training. By default, those of the signature of the pipeline, or of
            the configuration of the denoiser.

    Returns:
        The number; None if it is unknown, as for images.

    >>> from types import SimpleNamespace
    >>> training_token_frames(nn.Identity(), SimpleNamespace(vae_scale_factor_temporal=4), 81)
    21
    """
    config = getattr(denoiser, "config", None)
    frames, latent = frames or default_frames(pipeline), getattr(config, "sample_frames", None)
    reductions = [getattr(pipeline, name) for name in _REDUCTIONS if hasattr(pipeline, name)]
    reductions += [getattr(config, "temporal_compression_ratio", None)]
    reduction = next((number for number in reductions if isinstance(number, int)), None)
    if frames is None and isinstance(latent, int) and hasattr(config, "temporal_compression_ratio"):
        frames = latent  # CogVideoX's configuration counts frames; Allegro's counts latent frames
    if frames is not None:
        latent = None if reduction is None else (frames - 1) // reduction + 1
    return -(-latent // patch_sizes(config)[1]) if isinstance(latent, int) else None
