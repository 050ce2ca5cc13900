"""What else changes with the image size, in addition to the number of tokens: the manifest of a run records it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from entropy_probe.attention import find_denoiser
from entropy_probe.models.sizes import Size, format_size, pixels_per_latent

_POSITIONS = re.compile(r"rope|rotary|interpolation_scale|pos_embed|scaling_watershed")
"""Settings of a denoiser that determine how its positions follow the image size."""


def confounders(pipeline: Any, sizes: Sequence[Size]) -> dict[str, str]:
    """Return what changes with the image size: the timestep shift mu of flow models, and the scaling of positions.

    Args:
        pipeline: a diffusers pipeline.
        sizes: (height, width) in pixels.

    >>> import entropy_probe as ep
    >>> confounders(ep.reference.load(), [(64, 64)])
    {}
    """
    found = {}
    config = getattr(getattr(pipeline, "scheduler", None), "config", None) or {}
    if config.get("use_dynamic_shifting"):
        shifts = (f"{format_size(size)}: {_shift(config, _tokens(pipeline, size)):.3f}" for size in sizes)
        found["timestep shift mu"] = ", ".join(shifts)
    settings = getattr(find_denoiser(pipeline), "config", None) or {}
    for name, value in dict(settings).items():
        if _POSITIONS.search(name) and value is not None:
            found[name] = str(value)[:200]
    return found


def _shift(config: Any, tokens: int) -> float:
    """Return mu as diffusers' pipelines compute it: linear in the number of tokens."""
    few, many = config.get("base_image_seq_len") or 256, config.get("max_image_seq_len") or 4096
    low, high = config.get("base_shift") or 0.5, config.get("max_shift") or 1.15
    return float(low + (high - low) * (tokens - few) / (many - few))


def _tokens(pipeline: Any, size: Size) -> int:
    """Return the number of image tokens. Pipelines whose denoiser has no patches pack two by two latent pixels."""
    patch = getattr(getattr(find_denoiser(pipeline), "config", None), "patch_size", None)
    side = pixels_per_latent(pipeline) * (patch if isinstance(patch, int) and patch > 1 else 2)
    return (size[0] // side) * (size[1] // side)
