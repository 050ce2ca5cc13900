"""The content of a scene: classes of objects, backgrounds, and the prompts that combine them.

A prompt names one or two groups of objects and a background, for example `two lemons and one fox on white`. Ten percent
of the combinations of class, count and background are held out, see `held_out`.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from entropy_probe.bundled import bundled

MAX_OBJECTS = 3
HELD_OUT_EVERY = 10
"""One combination of class, count and background in this number is never trained."""

NUMBERS = ("zero", "one", "two", "three")

Split = Literal["training", "held-out", "all"]


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


@functools.cache
def classes() -> tuple[ObjectClass, ...]:
    """Return the 64 classes in alphabetical order."""
    records = json.loads(gzip.decompress(bundled("scenes/classes.json.gz").read_bytes()))
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
        max_objects: largest number of objects, 1 to 3.

    Raises:
        ValueError: if the split is unknown or `max_objects` is out of range.
    """
    if not 1 <= max_objects <= MAX_OBJECTS:
        raise ValueError(f"max_objects must be 1 to {MAX_OBJECTS}, got {max_objects}")
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


@functools.cache
def _class_index() -> dict[str, int]:
    return {c.name: i for i, c in enumerate(classes())}


@functools.cache
def _background_index() -> dict[str, int]:
    return {b.name: i for i, b in enumerate(BACKGROUNDS)}
