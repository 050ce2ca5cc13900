"""The latents that a denoiser is given, whatever form its family passes them in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Latents:
    """Size of what a denoiser runs on.

    Attributes:
        height: latent pixels; tokens, where the latents come packed into tokens.
        width: as `height`.
        patch: latent pixels that one token of the finest grid stands for, along each side.
        frames: frames of tokens; 1 for images.
    """

    height: int
    width: int
    patch: int = 1
    frames: int = 1


def find_latents(denoiser: nn.Module, arguments: Mapping[str, Any]) -> Latents | None:
    """What the arguments of a forward say; None where they hold no latents, as those of a language model.

    Seen: images (batch, channels, height, width); videos with one axis more, before or after the channels; lists of
    such; tokens with `height`, `width` and `num_frames`, with `img_shapes`, or with rows and columns in `img_ids`.
    """
    config = getattr(denoiser, "config", None)
    patch, patch_frames = _patch(config)
    for name, value in arguments.items():
        shape = None if "mask" in name else _first_shape(value)
        if shape is not None and len(shape) == 4 and isinstance(value, Tensor):
            return Latents(shape[-2], shape[-1], patch)
        if shape is not None and len(shape) in (4, 5):  # a list holds videos without their batch
            before = shape[-4:-2]
            frames = before[0] if len(shape) == 5 and before[1] == getattr(config, "in_channels", None) else before[1]
            return Latents(shape[-2], shape[-1], patch, frames // patch_frames or 1)
    if "img_shapes" in arguments:  # one triple an item, or a list of them
        first = arguments["img_shapes"][0]
        frames, height, width = first[0] if isinstance(first[0], Sequence) else first
        return Latents(height, width, 1, frames)
    if isinstance(arguments.get("img_ids"), Tensor):
        ids = arguments["img_ids"].reshape(-1, arguments["img_ids"].shape[-1])
        rows, columns = (ids.amax(0) - ids.amin(0) + 1).tolist()[1:3]
        return Latents(int(rows), int(columns))
    sides = arguments.get("height"), arguments.get("width")
    if isinstance(sides[0], int) and isinstance(sides[1], int):
        return Latents(sides[0], sides[1], patch, int(arguments.get("num_frames") or 1))
    return None


def training_latents(denoiser: nn.Module, pipeline: Any = None) -> Latents | None:
    """The size that a denoiser was trained at, where its configuration tells, or else its pipeline by its default."""
    config = getattr(denoiser, "config", None)
    size = getattr(config, "sample_size", None) or (
        getattr(config, "sample_height", None),
        getattr(config, "sample_width", None),
    )
    if size == (None, None) and isinstance(default := getattr(pipeline, "default_sample_size", None), int):
        size = default // _packing(config, getattr(getattr(pipeline, "vae", None), "config", None))
    height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
    if height is None or width is None:
        return None
    return Latents(int(height), int(width), _patch(config)[0])


def _packing(config: Any, autoencoder: Any) -> int:
    """Latent pixels along a side of the token that the pipeline makes of them, as Flux does: by their channels."""
    packed = getattr(config, "in_channels", None)
    channels = getattr(autoencoder, "latent_channels", None) or getattr(autoencoder, "z_dim", None)
    return math.isqrt(packed // channels) if packed and channels and packed > channels else 1


def _patch(config: Any) -> tuple[int, int]:
    """Latent pixels and latent frames to a token, from the names that families give them."""
    size = getattr(config, "patch_size", None) or next(iter(getattr(config, "all_patch_size", None) or ()), 1)
    frames = getattr(config, "patch_size_t", None)
    if isinstance(size, Sequence):
        return int(size[-1]), int(frames or (size[0] if len(size) == 3 else 1))
    return int(size), int(frames or 1)


def _first_shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, list) and value and isinstance(value[0], Tensor) and value[0].ndim == 4:
        return tuple(value[0].shape)
    return None
