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
import gzip
import importlib.resources
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

SIZE = 64
"""Height and width of a training image, in pixels."""

SCALES = (0.25, 0.95)
"""Smallest and largest scale of an object: the longer side of its box, as a fraction of the short side of the frame."""

MARGIN = 0.025
"""Minimum distance of a box to the border of the frame, as a fraction of the short side."""

GAP = 0.08
"""Minimum distance between two boxes, horizontally or vertically, as a fraction of the short side."""

TRIES = 12
"""Attempts to place objects of given scales before the scales are drawn again."""

MAX_OBJECTS = 3
HELD_OUT_EVERY = 10
"""One combination of class, count and background in this number is never trained."""

NUMBERS = ("zero", "one", "two", "three")

Split = Literal["training", "held-out", "all"]
Larger = Literal["zoom", "canvas"]


@dataclass(frozen=True)
class ObjectClass:
    """One kind of object: a Noto emoji, cropped to its outline. `aspect` is width / height."""

    name: str
    plural: str
    emoji: str
    aspect: float
    svg: str = field(repr=False)


@dataclass(frozen=True)
class Background:
    """A flat colour, or a vertical gradient from `top` to `bottom` (red, green, blue; 0 to 255)."""

    name: str
    top: tuple[int, int, int]
    bottom: tuple[int, int, int]

    def pixels(self, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return an image of the background alone, at `height` x `width` pixels."""
        down = (np.arange(height)[:, None] + 0.5) / height
        rows = np.array(self.top) * (1 - down) + np.array(self.bottom) * down
        return np.repeat(np.rint(rows).astype(np.uint8)[:, None], width, axis=1)


BACKGROUNDS = (
    Background("white", (255, 255, 255), (255, 255, 255)),
    Background("blue", (120, 190, 250), (120, 190, 250)),
    Background("violet", (190, 160, 240), (190, 160, 240)),
    Background("pink", (255, 190, 220), (255, 190, 220)),
    Background("mint", (175, 235, 205), (175, 235, 205)),
    Background("sky", (90, 160, 250), (225, 240, 255)),
    Background("dusk", (110, 100, 210), (255, 180, 220)),
    Background("sea", (170, 225, 255), (40, 95, 205)),
)
"""Five flat backgrounds and three gradients, distinct from the colours of the objects."""


@dataclass(frozen=True)
class Group:
    """`count` objects of one class."""

    name: str
    count: int


@dataclass(frozen=True)
class Prompt:
    """The content of a scene, without positions: one or two groups of objects on a background."""

    groups: tuple[Group, ...]
    background: str

    @property
    def count(self) -> int:
        """Number of objects."""
        return sum(group.count for group in self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Class of each object."""
        return tuple(group.name for group in self.groups for _ in range(group.count))

    @property
    def caption(self) -> str:
        """The prompt in English.

        >>> Prompt((Group("lemon", 2), Group("fox", 1)), "white").caption
        'two lemons and one fox on white'
        """
        parts = [f"{NUMBERS[g.count]} {by_name()[g.name].plural if g.count > 1 else g.name}" for g in self.groups]
        return f"{' and '.join(parts)} on {self.background}"


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


@functools.cache
def classes() -> tuple[ObjectClass, ...]:
    """Return the 64 classes in alphabetical order."""
    records = json.loads(gzip.decompress(_data("scenes/classes.json.gz")))
    return tuple(ObjectClass(**record) for record in records)


@functools.cache
def by_name() -> dict[str, ObjectClass]:
    """Return the classes by name."""
    return {c.name: c for c in classes()}


def background(name: str) -> Background:
    """Return a background by name.

    Raises:
        ValueError: if the name is unknown.
    """
    for candidate in BACKGROUNDS:
        if candidate.name == name:
            return candidate
    raise ValueError(f"background must be one of {', '.join(b.name for b in BACKGROUNDS)}, got {name!r}")


def held_out(name: str, count: int, background_name: str) -> bool:
    """Return True if this combination of class, count and background is never trained.

    The choice is balanced: each class loses two or three of its 24 combinations, and is trained with every count and on
    every background.
    """
    return (_class_index()[name] + 3 * count + _background_index()[background_name]) % HELD_OUT_EVERY == 0


def in_training_split(prompt: Prompt) -> bool:
    """Return True if none of the prompt's combinations is held out."""
    return not any(held_out(g.name, g.count, prompt.background) for g in prompt.groups)


def parse(caption: str) -> Prompt:
    """Return the prompt of a caption: the inverse of `Prompt.caption`.

    Raises:
        ValueError: if the caption does not follow the grammar.
    """
    match = re.fullmatch(r"(.+) on (\w+)", caption)
    if not match:
        raise ValueError(f"caption must look like 'two lemons and one fox on white', got {caption!r}")
    groups = []
    for part in match[1].split(" and "):
        number, _, noun = part.partition(" ")
        found = [c.name for c in classes() if noun == (c.name if number == "one" else c.plural)]
        if number not in NUMBERS[1:] or not found:
            raise ValueError(f"caption has the unknown part {part!r}: {caption!r}")
        groups.append(Group(found[0], NUMBERS.index(number)))
    return Prompt(tuple(groups), background(match[2]).name)


def sample_prompt(rng: np.random.Generator, split: Split = "training", max_objects: int = MAX_OBJECTS) -> Prompt:
    """Sample a prompt: number of objects, classes and background are uniform; a third of the prompts have two classes.

    Args:
        rng: source of randomness; advanced by the call.
        split: `training` rejects held-out combinations, `held-out` accepts only prompts that contain one.
        max_objects: largest number of objects.

    Raises:
        ValueError: if the split is unknown.
    """
    if split not in ("training", "held-out", "all"):
        raise ValueError(f"split must be 'training', 'held-out' or 'all', got {split!r}")
    names = [c.name for c in classes()]
    while True:
        count = int(rng.integers(1, max_objects + 1))
        first, second = rng.choice(len(names), 2, replace=False)
        counts: Sequence[int] = (count,)
        if count > 1 and rng.random() < 1 / 3:
            head = int(rng.integers(1, count))
            counts = (head, count - head)
        groups = tuple(Group(names[i], n) for i, n in zip((first, second), counts, strict=False))
        prompt = Prompt(groups, BACKGROUNDS[rng.integers(len(BACKGROUNDS))].name)
        if split == "all" or in_training_split(prompt) == (split == "training"):
            return prompt


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
        ValueError: for a negative seed or sizes below 16 pixels; see also `sample_layout`.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if min(height, width) < 16:
        raise ValueError(f"height and width must be at least 16 pixels, got {height} x {width}")
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
    import resvg_py

    svg = by_name()[name].svg.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGBA")).astype(np.uint16)
    return pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]


@functools.lru_cache(maxsize=256)
def _background_pixels(name: str, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    return background(name).pixels(height, width)


@functools.cache
def _class_index() -> dict[str, int]:
    return {c.name: i for i, c in enumerate(classes())}


@functools.cache
def _background_index() -> dict[str, int]:
    return {b.name: i for i, b in enumerate(BACKGROUNDS)}


def _data(name: str) -> bytes:
    """Read a bundled file, from the source tree or from the installed package."""
    source = Path(__file__).parents[2] / "data" / name
    if source.exists():
        return source.read_bytes()
    return importlib.resources.files("entropy_probe.data").joinpath(name).read_bytes()
