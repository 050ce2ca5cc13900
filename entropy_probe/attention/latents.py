"""The size of the latents that a denoiser receives, in the form in which its family passes them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

COLOURS = 3
"""Channels of a model that works on pixels. Others without an autoencoder, as Stable Cascade's prior, have latents."""


@dataclass(frozen=True)
class Latents:
    """Size of the input of a denoiser.

    Attributes:
        height: in latent pixels, or in tokens if the latents are packed into tokens.
        width: as `height`.
        patch: side of a token of the finest grid, in latent pixels.
        frames: number of frames of tokens; 1 for images.
        others: number of tokens of other images that follow, such as the reference images of an edit.
        before: number of tokens of other images that come first.
    """

    height: int
    width: int
    patch: int = 1
    frames: int = 1
    others: int = 0
    before: int = 0


def find_latents(denoiser: nn.Module, arguments: Mapping[str, Any]) -> Latents | None:
    """Return the size of the latents among the arguments of a forward pass; None if there are none.

    Recognised are images (batch, channels, height, width), videos with one more axis before or after the channels, both
    with the channels last, and lists of both. The number of channels in the configuration distinguishes these. Packed
    tokens are recognised if the arguments also have `height`, `width` and `num_frames`, or `img_shapes`, or rows and
    columns in `img_ids`.

    >>> import torch
    >>> find_latents(nn.Identity(), {"sample": torch.zeros(2, 4, 32, 48)})
    Latents(height=32, width=48, patch=1, frames=1, others=0, before=0)
    """
    config = getattr(denoiser, "config", None)
    patch, patch_frames = patch_sizes(config)
    for name, value in arguments.items():
        shape = None if "mask" in name else _first_shape(value)
        if shape is not None and len(shape) == 4 and isinstance(value, Tensor):
            height, width = _without_channels(shape[1:], _channels(config))
            return Latents(height, width, patch)
        if shape is not None and len(shape) in (4, 5):  # a list contains videos without a batch axis
            frames, height, width = _without_channels(shape[-4:], _channels(config))
            return Latents(height, width, patch, frames // patch_frames or 1)
    if "img_shapes" in arguments:  # one triple per item, or a list: the image, then its references
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
    """Return the training size, from the denoiser's configuration, or else from the default size of its pipeline."""
    config = getattr(denoiser, "config", None)
    size = configured_size(denoiser) or _default_latents(config, pipeline)
    return None if size is None else Latents(*size, patch_sizes(config)[0])


def configured_size(denoiser: nn.Module) -> tuple[int, int] | None:
    """Return the training height and width of a denoiser's configuration, in latent pixels; None if it has none.

    The `image_size` of a vision transformer counts too. Its latent pixels are pixels.

    >>> from types import SimpleNamespace
    >>> denoiser = nn.Identity()
    >>> denoiser.config = SimpleNamespace(sample_size=64)
    >>> configured_size(denoiser)
    (64, 64)
    """
    config = getattr(denoiser, "config", None)
    named = getattr(config, "sample_height", None), getattr(config, "sample_width", None)
    size: Any = getattr(config, "sample_size", None) or _image_size(config) or named
    height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
    return None if height is None or width is None else (int(height), int(width))


def _image_size(config: Any) -> int | tuple[int, int] | None:
    """Return the training size of a vision transformer, in pixels, which are the latents that it takes."""
    size = getattr(config, "image_size", None)
    if getattr(config, "patch_size", None) is None or isinstance(size, bool):
        return None
    if isinstance(size, int):
        return size
    is_pair = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)
    return (int(size[0]), int(size[1])) if is_pair and size is not None else None


def default_size(pipeline: Any) -> tuple[int, int] | None:
    """Return the default height and width of a pipeline, in pixels; None if it has no default.

    >>> class Pipeline:
    ...     def __call__(self, prompt, height=512, width=768): ...
    >>> default_size(Pipeline())
    (512, 768)
    """
    asked = inspect.signature(type(pipeline).__call__).parameters
    sides = [
        getattr(asked.get(name), "default", None) or getattr(pipeline, f"default_{name}", None)
        for name in ("height", "width")
    ]
    if isinstance(sides[0], int) and isinstance(sides[1], int):
        return sides[0], sides[1]
    in_pixels = getattr(getattr(pipeline, "config", None), "default_sample_size", None)  # PRX
    if isinstance(in_pixels, int):
        return in_pixels, in_pixels
    default = getattr(pipeline, "default_sample_size", None)
    if not isinstance(default, int):
        return None
    side = default * int(getattr(pipeline, "vae_scale_factor", 1))
    return side, side


def _channels(config: Any) -> frozenset[int]:
    """Return the numbers of channels that the latents may have, from the names that families give them."""
    names = ("in_channels", "in_visual_dim", "in_dim", "num_channels", "num_latent_channels")
    found = [getattr(config, name, None) for name in names]
    channels = {int(number) for number in found if isinstance(number, int)}
    video = getattr(config, "in_visual_dim", None)  # Kandinsky 5 may add an image and its mask
    return frozenset(channels | ({2 * video + 1} if isinstance(video, int) else set()))


def _without_channels(shape: Sequence[int], channels: frozenset[int]) -> tuple[int, ...]:
    """Return the axes of an image or video without its channels. They are first unless their number is elsewhere."""
    axes = [0, 2] if len(shape) == 3 else [1, 0, 3]  # a video's channels may follow its frames
    channel = next((axis for axis in axes if shape[axis] in channels), 0)
    return tuple(size for axis, size in enumerate(shape) if axis != channel)


def _of_ids(ids: Tensor) -> Latents:
    """Return the size from ids of packed tokens, (image, row, column).

    Other images differ in the first number, which is smallest for the image that is sampled.
    """
    places = ids if ids.ndim == 2 else ids[0]
    is_own = places[:, 0] == places[:, 0].amin()
    own = places[is_own]
    rows, columns = (own.amax(0) - own.amin(0) + 1).tolist()[1:3]
    before = int(is_own.int().argmax())
    return Latents(int(rows), int(columns), others=len(places) - len(own) - before, before=before)


def _default_latents(config: Any, pipeline: Any) -> tuple[int, int] | None:
    """Return a pipeline's default height and width, in tokens or latent pixels; None if they are unknown."""
    pixels = default_size(pipeline)
    multiple = getattr(getattr(pipeline, "config", None), "resolution_multiple", None)
    if pixels is not None and multiple:  # the prior of Stable Cascade, which has no autoencoder
        return math.ceil(pixels[0] / multiple), math.ceil(pixels[1] / multiple)
    if pixels is None or not hasattr(pipeline, "vae"):
        return pixels if getattr(config, "in_channels", None) == COLOURS else None
    levels = getattr(getattr(pipeline.vae, "config", None), "block_out_channels", None)
    # The scale factor of a pipeline is not used: it may include the packing.
    reduction = getattr(pipeline.vae, "spatial_compression_ratio", None) or (levels and 2 ** (len(levels) - 1))
    if not reduction:
        return None
    token = reduction * _packing(config, pipeline.vae.config)
    return pixels[0] // token, pixels[1] // token


def _packing(config: Any, autoencoder: Any) -> int:
    """Return the side, in latent pixels, of the tokens that pipelines such as Flux pack; known from their channels."""
    packed = getattr(config, "in_channels", None)
    channels = getattr(autoencoder, "latent_channels", None) or getattr(autoencoder, "z_dim", None)
    return 2 if packed and channels and packed >= 4 * channels else 1


def patch_sizes(config: Any) -> tuple[int, int]:
    """Return the latent pixels and latent frames per token, from the names that families give them.

    >>> from types import SimpleNamespace
    >>> patch_sizes(SimpleNamespace(patch_size=[1, 2, 2]))
    (2, 1)
    """
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
