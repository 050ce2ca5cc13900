"""Procedural scenes with captions and exact ground truth: the training distribution of the bundled models.

A scene has one to three objects of one or two classes on one of eight backgrounds, for example `two lemons and one
fox on white`. Everything is drawn from vectors, so the same scene exists at any height and width. There is an
endless supply: a model cannot memorise it. The steps from a seed to an image are

    seed -> `sample_prompt` -> `sample_layout` -> `draw` -> `Scene`

and `sample` runs all of them. Ten percent of the combinations of class, count and background are held out: training
scenes never contain them, see `held_out`.

Lengths are fractions of the short side of the frame unless a docstring says pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from entropy_probe.extras import name_missing_extra
from entropy_probe.reference.scene_prompts import (
    BACKGROUNDS,
    HELD_OUT_EVERY,
    MAX_OBJECTS,
    NUMBERS,
    Background,
    Group,
    ObjectClass,
    Prompt,
    Split,
    background,
    by_name,
    classes,
    held_out,
    in_training_split,
    parse,
    sample_prompt,
)

__all__ = [
    "BACKGROUNDS",
    "GAP",
    "HELD_OUT_EVERY",
    "MARGIN",
    "MAX_OBJECTS",
    "MIN_SIDE",
    "NUMBERS",
    "SCALES",
    "SIZE",
    "Background",
    "Box",
    "Group",
    "Larger",
    "Layout",
    "ObjectClass",
    "Placement",
    "Prompt",
    "Scene",
    "Split",
    "background",
    "by_name",
    "classes",
    "draw",
    "held_out",
    "in_training_split",
    "parse",
    "sample",
    "sample_layout",
    "sample_prompt",
]

SIZE = 64
"""Height and width of a training image, in pixels."""

SCALES = (0.25, 0.95)
"""Smallest and largest scale of an object: the longer side of its box, as a fraction of the short side of the frame."""

MARGIN = 0.025
"""Minimum distance of a box to the border of the frame, as a fraction of the short side."""

GAP = 0.08
"""Minimum distance between two boxes, horizontally or vertically, as a fraction of the short side."""

MIN_SIDE = 20
"""Smallest height or width of a frame, in pixels. Below it, boxes that are rounded to whole pixels could overlap."""

TRIES = 12
"""Attempts to place objects of given scales before the scales are drawn again."""

Larger = Literal["zoom", "canvas"]


@dataclass(frozen=True)
class Placement:
    """One object of a layout: centre as fractions of width and height, scale as a fraction of the short side."""

    name: str
    x: float
    y: float
    scale: float


@dataclass(frozen=True)
class Layout:
    """A prompt and the places of its objects, independent of the number of pixels."""

    prompt: Prompt
    placements: tuple[Placement, ...]


@dataclass(frozen=True)
class Box:
    """The outline of a drawn object in pixels: `left` <= column < `right` and `top` <= row < `bottom`."""

    name: str
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Scene:
    """An image and its ground truth."""

    image: UInt8[np.ndarray, "height width 3"] = field(repr=False, compare=False)
    layout: Layout
    boxes: tuple[Box, ...]

    @property
    def prompt(self) -> Prompt:
        """Classes, counts and background."""
        return self.layout.prompt

    @property
    def caption(self) -> str:
        """The caption, for example `one dog face on blue`."""
        return self.layout.prompt.caption

    @property
    def background(self) -> Background:
        """The background, which the counter needs."""
        return background(self.layout.prompt.background)


def sample_layout(
    prompt: Prompt, rng: np.random.Generator, height: int = SIZE, width: int = SIZE, larger: Larger = "zoom"
) -> Layout:
    """Place the objects of a prompt in a frame of `height` x `width` pixels.

    Scales are log-uniform in `SCALES` and positions uniform, given that boxes keep `MARGIN` to the border and `GAP` to
    each other. Scenes with three objects therefore have smaller objects on average.

    Args:
        prompt: classes, counts and background.
        rng: source of randomness; advanced by the call.
        height: in pixels.
        width: in pixels.
        larger: `zoom` scales objects with the frame: the layout depends on width / height only. `canvas` keeps the size
            in pixels that the objects have at `SIZE` and places them on the larger canvas.

    Raises:
        ValueError: if `larger` is unknown, or a canvas is smaller than the training size.
    """
    if larger == "zoom":
        short = min(height, width)
        return _place(prompt, None, rng, height / short, width / short)
    if larger != "canvas":
        raise ValueError(f"larger must be 'zoom' or 'canvas', got {larger!r}")
    if min(height, width) < SIZE:
        raise ValueError(f"a canvas must be at least {SIZE} pixels high and wide, got {height} x {width}: use 'zoom'")
    trained = _place(prompt, None, rng, 1.0, 1.0)
    if height == width == SIZE:
        return trained
    placed = _place(prompt, [p.scale for p in trained.placements], rng, height / SIZE, width / SIZE)
    shrink = SIZE / min(height, width)
    return Layout(prompt, tuple(Placement(p.name, p.x, p.y, p.scale * shrink) for p in placed.placements))


def draw(layout: Layout, height: int = SIZE, width: int = SIZE) -> Scene:
    """Draw a layout at `height` x `width` pixels. Boxes are rounded to whole pixels."""
    short = min(height, width)
    image = _background_pixels(layout.prompt.background, height, width).copy()
    boxes = []
    for p in layout.placements:
        box_width, box_height = (max(1, round(side * short)) for side in _sides(p.name, p.scale))
        left = min(max(0, round(p.x * width - box_width / 2)), width - box_width)
        top = min(max(0, round(p.y * height - box_height / 2)), height - box_height)
        colour, opacity = _raster(p.name, box_height, box_width)
        target = image[top : top + box_height, left : left + box_width]
        target[:] = (colour + target * (255 - opacity) + 127) // 255
        boxes.append(Box(p.name, left, top, left + box_width, top + box_height))
    return Scene(image, layout, tuple(boxes))


def sample(
    seed: int,
    height: int = SIZE,
    width: int = SIZE,
    *,
    split: Split = "training",
    larger: Larger = "zoom",
    prompt: Prompt | None = None,
) -> Scene:
    """Draw the scene of a seed. The same arguments always return the same scene.

    Args:
        seed: non-negative.
        height: in pixels.
        width: in pixels.
        split: see `sample_prompt`; ignored if a prompt is given.
        larger: see `sample_layout`.
        prompt: fix the content, and let the seed decide the positions and scales only.

    Raises:
        ValueError: for a negative seed or sizes below `MIN_SIDE`; see also `sample_prompt` and `sample_layout`.

    Examples:
        >>> scene = sample(1, 48, 96)
        >>> scene.image.shape, scene.prompt.count == len(scene.boxes)
        ((48, 96, 3), True)
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"height and width must be at least {MIN_SIDE} pixels, got {height} x {width}")
    rng = np.random.default_rng(seed)
    chosen = prompt or sample_prompt(rng, split)
    return draw(sample_layout(chosen, rng, height, width, larger), height, width)


def _place(
    prompt: Prompt, scales: Sequence[float] | None, rng: np.random.Generator, height: float, width: float
) -> Layout:
    """Place boxes by rejection. The sides of the frame have the same unit as the scales, `MARGIN` and `GAP`.

    Scales that find no place in `TRIES` attempts are drawn again, unless they are given.
    """
    names = prompt.names
    shape = np.array([_sides(name, 1.0) for name in names])
    while True:
        if scales is None:
            drawn = np.exp(rng.uniform(math.log(SCALES[0]), math.log(SCALES[1]), (TRIES, 1, len(names), 1)))
        else:
            drawn = np.array(scales).reshape(1, 1, -1, 1)
        sides = drawn * shape
        room = np.array([width, height]) - sides - 2 * MARGIN
        spots = MARGIN + sides / 2 + rng.random((len(drawn), TRIES, len(names), 2)) * room
        valid = (room >= 0).all((-1, -2)) & np.ones((1, TRIES), bool)
        for i in range(len(names)):
            for j in range(i):
                distance = np.abs(spots[:, :, i] - spots[:, :, j])
                valid &= (distance >= (sides[:, :, i] + sides[:, :, j]) / 2 + GAP).any(-1)
        found = np.flatnonzero(valid)
        if len(found):
            which, attempt = divmod(int(found[0]), TRIES)
            centres = (spots[which, attempt] / [width, height]).tolist()
            chosen = drawn[which, 0, :, 0].tolist()
            return Layout(
                prompt, tuple(Placement(n, x, y, s) for n, (x, y), s in zip(names, centres, chosen, strict=True))
            )


def _sides(name: str, scale: float) -> tuple[float, float]:
    """Width and height of a box whose longer side is `scale`."""
    aspect = by_name()[name].aspect
    return (scale, scale / aspect) if aspect >= 1 else (scale * aspect, scale)


@functools.lru_cache(maxsize=4096)
def _raster(
    name: str, height: int, width: int
) -> tuple[UInt16[np.ndarray, "height width 3"], UInt16[np.ndarray, "height width 1"]]:
    """Return colour times opacity (0 to 65,025) and opacity (0 to 255) of an object of `height` x `width` pixels."""
    with name_missing_extra():
        import resvg_py

    svg = by_name()[name].svg.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGBA")).astype(np.uint16)
    return pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]


@functools.lru_cache(maxsize=256)
def _background_pixels(name: str, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    return background(name).pixels(height, width)
