"""The output of a pipeline: one image or one video per prompt and seed, as PIL images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from entropy_probe.errors import InputError

Clip = tuple[Image.Image, ...]
"""The frames of a video; an image is a clip of one frame."""

FRAME_MILLISECONDS = 83
"""Duration of a frame in a saved video: 12 frames per second."""


def clips(output: Any, count: int) -> list[Clip]:
    """Return one clip per sample from the output of a pipeline.

    Args:
        output: an output with `images` or `frames`, or the tuple or list of a custom pipeline.
        count: number of samples.

    Raises:
        InputError: if there is not one image or video per sample.

    >>> from types import SimpleNamespace
    >>> frame = Image.new("RGB", (8, 4))
    >>> [len(clip) for clip in clips(SimpleNamespace(frames=[[frame] * 3, [frame] * 3]), 2)]
    [3, 3]
    """
    samples = _samples(output)
    found = [] if samples is None else [_clip(sample) for sample in samples]
    if len(found) != count or not all(found):
        raise InputError(
            f"the pipeline must return one image or video per prompt and seed, in `images` or `frames`: expected "
            f"{count}, got {len(found)} in {type(output).__name__}"
        )
    return found


def middle(clip: Clip) -> Image.Image:
    """Return the frame in the middle of a clip, which image metrics score.

    >>> middle(tuple(Image.new("RGB", (width, 1)) for width in (1, 2, 3))).width
    2
    """
    return clip[len(clip) // 2]


def to_png(clip: Clip) -> bytes:
    """Return a clip as a PNG file. A video is an animated PNG that other programs show as its middle frame.

    >>> frames = tuple(Image.new("L", (2, 2), shade) for shade in (10, 20, 30))
    >>> Image.open(io.BytesIO(to_png(frames))).getpixel((0, 0))
    20
    """
    sink = io.BytesIO()
    if len(clip) == 1:
        clip[0].save(sink, format="PNG")
    else:
        middle(clip).save(
            sink,
            format="PNG",
            save_all=True,
            default_image=True,
            append_images=list(clip),
            duration=FRAME_MILLISECONDS,
            loop=0,
        )
    return sink.getvalue()


def from_png(content: bytes) -> Clip:
    """Return the clip of a file that `to_png` wrote.

    >>> frames = tuple(Image.new("RGB", (2, 2), (shade, 0, 0)) for shade in (10, 20, 30))
    >>> [frame.getpixel((0, 0))[0] for frame in from_png(to_png(frames))]
    [10, 20, 30]
    """
    with Image.open(io.BytesIO(content)) as image:
        frames = []
        for number in range(int(getattr(image, "n_frames", 1))):
            image.seek(number)
            frames.append(image.convert("RGB"))
    return tuple(frames[1:] if len(frames) > 1 else frames)


def _samples(output: Any) -> Sequence[Any] | None:
    for name in ("images", "frames"):
        if getattr(output, name, None) is not None:
            found: Sequence[Any] = getattr(output, name)
            return found
    if isinstance(output, tuple | list) and output:
        first = output[0]
        return output if isinstance(first, Image.Image) else first if isinstance(first, Sequence) else None
    return None


def _clip(sample: Any) -> Clip:
    """Return the frames of one sample: an image, a list of images, or an array of one image or video in [0, 1]."""
    if isinstance(sample, Image.Image):
        return (sample,)
    if isinstance(sample, list | tuple):
        return tuple(image for one in sample for image in _clip(one))
    if isinstance(sample, Tensor):  # channels first
        sample = sample.detach().float().cpu().movedim(-3, -1).numpy()
    if not isinstance(sample, np.ndarray) or sample.ndim not in (3, 4):
        return ()
    frames = sample if sample.ndim == 4 else sample[None]
    if frames.dtype != np.uint8:
        frames = (frames.clip(0, 1) * 255).round().astype(np.uint8)
    return tuple(Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in frames)
