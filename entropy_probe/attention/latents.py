"""The latents that a denoiser is given, whatever form its family passes them in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

COLOURS = 3
"""Channels of a model that works on pixels: the prior of Stable Cascade has no autoencoder either, but latents."""


@dataclass(frozen=True)
class Latents:
    """Size of what a denoiser runs on.

    Attributes:
        height: latent pixels; tokens, where the latents come packed into tokens.
        width: as `height`.
        patch: latent pixels that one token of the finest grid stands for, along each side.
        frames: frames of tokens; 1 for images.
        others: tokens of other images that follow those of this one, as the references of an edit do.
    """

    height: int
    width: int
    patch: int = 1
    frames: int = 1
    others: int = 0


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
    if "img_shapes" in arguments:  # one triple an item, or a list of them: the image, then its references
        first = arguments["img_shapes"][0]
        shapes = first if isinstance(first[0], Sequence) else [first]
        frames, height, width = shapes[0]
        return Latents(height, width, 1, frames, sum(map(math.prod, shapes[1:])))
    if isinstance(arguments.get("img_ids"), Tensor):
        return _of_ids(arguments["img_ids"])
    sides = arguments.get("height"), arguments.get("width")
    if isinstance(sides[0], int) and isinstance(sides[1], int):
        return Latents(sides[0], sides[1], patch, int(arguments.get("num_frames") or 1))
    return None


def training_latents(denoiser: nn.Module, pipeline: Any = None) -> Latents | None:
    """The size that a denoiser was trained at, where its configuration tells, or else its pipeline by its default."""
    config = getattr(denoiser, "config", None)
    size = configured_size(denoiser) or _default_latents(config, pipeline)
    return None if size is None else Latents(*size, _patch(config)[0])


def configured_size(denoiser: nn.Module) -> tuple[int, int] | None:
    """Height and width, in latent pixels, that a denoiser's configuration says it was trained at."""
    config = getattr(denoiser, "config", None)
    size = getattr(config, "sample_size", None) or (
        getattr(config, "sample_height", None),
        getattr(config, "sample_width", None),
    )
    height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
    return None if height is None or width is None else (int(height), int(width))


def default_size(pipeline: Any) -> tuple[int, int] | None:
    """Height and width, in pixels, that a pipeline draws when no size is asked of it; None where it does not tell."""
    asked = inspect.signature(type(pipeline).__call__).parameters
    sides = [
        getattr(asked.get(name), "default", None) or getattr(pipeline, f"default_{name}", None)
        for name in ("height", "width")
    ]
    if isinstance(sides[0], int) and isinstance(sides[1], int):
        return sides[0], sides[1]
    in_pixels = getattr(getattr(pipeline, "config", None), "default_sample_size", None)  # PRX, among its settings
    if isinstance(in_pixels, int):
        return in_pixels, in_pixels
    default = getattr(pipeline, "default_sample_size", None)
    if not isinstance(default, int):
        return None
    side = default * int(getattr(pipeline, "vae_scale_factor", 1))
    return side, side


def _of_ids(ids: Tensor) -> Latents:
    """From the places of packed tokens, (image or frame, row, column, ...): references have another first number."""
    places = ids if ids.ndim == 2 else ids[0]
    own = places[places[:, 0] == places[0, 0]]
    rows, columns = (own.amax(0) - own.amin(0) + 1).tolist()[1:3]
    return Latents(int(rows), int(columns), others=len(places) - len(own))


def _default_latents(config: Any, pipeline: Any) -> tuple[int, int] | None:
    """Tokens, or latent pixels, along the sides of what a pipeline draws by default; None where untold."""
    pixels = default_size(pipeline)
    multiple = getattr(getattr(pipeline, "config", None), "resolution_multiple", None)
    if pixels is not None and multiple:  # the prior of Stable Cascade, whose latents no autoencoder of its own reads
        return math.ceil(pixels[0] / multiple), math.ceil(pixels[1] / multiple)
    if pixels is None or not hasattr(pipeline, "vae"):
        return pixels if getattr(config, "in_channels", None) == COLOURS else None
    levels = getattr(getattr(pipeline.vae, "config", None), "block_out_channels", None)
    # What pipelines call their scale factor may count the packing too.
    reduction = getattr(pipeline.vae, "spatial_compression_ratio", None) or (levels and 2 ** (len(levels) - 1))
    if not reduction:
        return None
    token = reduction * _packing(config, pipeline.vae.config)
    return pixels[0] // token, pixels[1] // token


def _packing(config: Any, autoencoder: Any) -> int:
    """Latent pixels along a side of the token that a pipeline makes of them, as Flux does: their channels tell."""
    packed = getattr(config, "in_channels", None)
    channels = getattr(autoencoder, "latent_channels", None) or getattr(autoencoder, "z_dim", None)
    return 2 if packed and channels and packed >= 4 * channels else 1


def _patch(config: Any) -> tuple[int, int]:
    """Latent pixels and latent frames to a token, from the names that families give them."""
    size = getattr(config, "patch_size", None) or next(iter(getattr(config, "all_patch_size", None) or ()), 1)
    frames = getattr(config, "patch_size_t", None)
    if isinstance(size, Sequence):
        return int(size[-1]), int(frames or (size[0] if len(size) == 3 else 1))
    return int(size), int(frames or 1)


def _first_shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, Tensor):
        return None if value.is_nested else tuple(value.shape)
    if isinstance(value, list) and value and isinstance(value[0], Tensor) and value[0].ndim == 4:
        return tuple(value[0].shape)
    return None
