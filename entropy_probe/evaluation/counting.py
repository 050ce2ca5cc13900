"""Count the objects in images of scenes: how many are drawn, cut off by the frame, or merged into one another.

The background of a scene is known exactly. A pixel is foreground if it differs from the background. Connected
foreground pixels form a fragment, and fragments that almost touch form one object: the objects of real scenes keep a
distance of `reference.scenes.GAP`. No network is involved. `docs/scenes.md` shows how often the count is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from torch import Tensor

from entropy_probe.reference.scenes import SCALES, SIZE, Larger, background

FOREGROUND = 45
"""Minimum difference of a foreground pixel from the background, in its most different channel, of 255."""

CERTAIN = 2 * FOREGROUND
"""The same, for pixels at the frame. Decoders blur objects near the frame into it."""

JOIN = 0.03
"""Fragments whose boxes are closer than this belong to one object, as a fraction of the unit; below half of `GAP`."""

SMALLEST = SCALES[0] / 2
"""Minimum of the longer side of an object, as a fraction of the unit: half the smallest real object."""

CONTACT = 0.25
"""Minimum contact of a cut-off object with the frame, as a fraction of the longer side of its box."""

NECK = 0.7
"""Maximum width of the narrowest place between two merged objects, as a fraction of the smaller object's width."""

CORE = 0.06
"""Minimum radius of the largest disc inside a merged object, as a fraction of the unit."""

LEVELS = 12
"""Number of widths at which merged objects are tried to be separated."""

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)

Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class ObjectCounts:
    """Objects in each of several images.

    Attributes:
        objects: number of objects.
        cut_off: number of objects that the frame cuts off.
        merged: number of objects that look like several objects grown together. Each of them counts as one object.
    """

    objects: Int[np.ndarray, " images"]
    cut_off: Int[np.ndarray, " images"]
    merged: Int[np.ndarray, " images"]

    @property
    def empty(self) -> Bool[np.ndarray, " images"]:
        """True for images without an object."""
        return np.asarray(self.objects == 0)

    @property
    def complete(self) -> Bool[np.ndarray, " images"]:
        """True for images with at least one object, none of them cut off or merged."""
        return np.asarray((self.objects > 0) & (self.cut_off == 0) & (self.merged == 0))


def count_objects(
    images: UInt8[Tensor, "count 3 height width"], backgrounds: Sequence[str], larger: Larger = "zoom"
) -> ObjectCounts:
    """Count the objects in images of scenes.

    Args:
        images: bytes, all of one size.
        backgrounds: name of the background of each image, see `reference.scenes.BACKGROUNDS`.
        larger: `zoom` if the size of objects follows the image size, `canvas` if objects have the size in pixels that
            they have in training. It sets the unit of lengths: the short side, or the training size.

    Raises:
        ValueError: if the number of backgrounds differs from the number of images, a background is unknown, or `larger`
            is.

    Examples:
        >>> import torch
        >>> from entropy_probe.reference import scenes
        >>> scene = scenes.sample(3, 64, 64)
        >>> image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
        >>> int(count_objects(image, [scene.background.name]).objects[0]) == scene.prompt.count
        True
    """
    if len(backgrounds) != len(images):
        raise ValueError(f"backgrounds must name one background per image, got {len(backgrounds)} for {len(images)}")
    if larger not in ("zoom", "canvas"):
        raise ValueError(f"larger must be 'zoom' or 'canvas', got {larger!r}")
    height, width = images.shape[-2:]
    unit = min(height, width) if larger == "zoom" else SIZE
    rows = []
    for image, name in zip(images, backgrounds, strict=True):
        signed = image.permute(1, 2, 0).numpy().astype(int) - background(name).pixels(height, width)
        difference = np.abs(signed).max(-1)
        found = find_objects(difference > FOREGROUND, unit)
        cut = sum(is_cut_off(mask, difference > CERTAIN) for mask in found)
        rows.append((len(found), cut, sum(is_merged(mask, unit) for mask in found)))
    objects, cut_off, merged = np.array(rows, int).reshape(-1, 3).T
    return ObjectCounts(objects, cut_off, merged)


def find_objects(foreground: Mask, unit: int) -> list[Mask]:
    """Return the mask of each object: fragments of the foreground, joined where their boxes almost touch.

    Args:
        foreground: True where the image differs from the background.
        unit: length in pixels that `JOIN` and `SMALLEST` are fractions of.
    """
    labels, _ = ndimage.label(foreground, EIGHT_NEIGHBOURS)
    boxes = [((rows.start, rows.stop), (columns.start, columns.stop)) for rows, columns in ndimage.find_objects(labels)]
    groups = [({number}, box) for number, box in enumerate(boxes, 1)]
    joined = True
    while joined:
        joined = False
        for i, (numbers, box) in enumerate(groups):
            near = next((j for j in range(i) if _distance(box, groups[j][1]) < JOIN * unit), None)
            if near is not None:
                groups[near] = groups[near][0] | numbers, _hull(box, groups[near][1])
                del groups[i]
                joined = True
                break
    large = [numbers for numbers, box in groups if max(stop - start for start, stop in box) >= SMALLEST * unit]
    return [np.isin(labels, list(numbers)) for numbers in large]


def is_cut_off(mask: Mask, certain: Mask) -> bool:
    """Return True if an object touches the frame along more than `CONTACT` of the longer side of its box.

    Real objects keep a distance to the frame, which rounding to pixels can reduce to zero.

    Args:
        mask: True on the object.
        certain: True where the image certainly differs from the background.
    """
    sides = [np.ptp(places) + 1 for places in mask.nonzero()]
    visible = mask & certain
    contact = max(edge.sum() for edge in (visible[0], visible[-1], visible[:, 0], visible[:, -1]))
    return bool(contact > max(1.0, CONTACT * max(sides)))


def is_merged(mask: Mask, unit: int) -> bool:
    """Return True if an object consists of two wide parts with a narrow place between them.

    The width at a pixel is its distance to the background, after holes are filled.

    Args:
        mask: True on the object.
        unit: length in pixels that `CORE` is a fraction of.
    """
    rows, columns = (slice(places.min(), places.max() + 1) for places in mask.nonzero())
    filled = np.pad(ndimage.binary_fill_holes(mask[rows, columns]), 1)
    radius: Float[np.ndarray, "height width"] = ndimage.distance_transform_edt(filled)
    for level in np.linspace(0, radius.max(), LEVELS, endpoint=False):
        parts, count = ndimage.label(radius > level, EIGHT_NEIGHBOURS)
        widest = ndimage.maximum(radius, parts, range(1, count + 1))
        if sum(np.atleast_1d(widest) >= max(level / NECK, CORE * unit)) > 1:
            return True
    return False


Box = tuple[tuple[int, int], tuple[int, int]]


def _distance(first: Box, second: Box) -> int:
    """Distance of two boxes in pixels, along the axis in which they are farther apart; negative if they overlap."""
    return max(max(a[0], b[0]) - min(a[1], b[1]) for a, b in zip(first, second, strict=True))


def _hull(first: Box, second: Box) -> Box:
    rows, columns = ((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(first, second, strict=True))
    return rows, columns
