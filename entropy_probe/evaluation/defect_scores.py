"""Scores of two defects of images sampled at another size than the training size: incomplete and repeated objects.

Each score is a number from 0 (no defect) and is computed from the image alone. Both start from the foreground: the
difference of each pixel from the background colour. The background colour is given, or it is the median colour along
the frame. `docs/defects.md` shows both scores on images that were cropped, erased and tiled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import fft, ndimage
from torch import Tensor

from entropy_probe.deprecation import renamed_names, warn_renamed

Colour = tuple[float, float, float]

WHITE: Colour = (1.0, 1.0, 1.0)
"""The background of the images that the bundled models were trained on."""

FOREGROUND_THRESHOLD = 0.15
"""Minimum difference from the background of a foreground pixel, as a fraction of full scale."""

CENTRED_RADIUS = 0.25
"""Maximum distance of a centred object from the image centre, in half sides. 95 % of real images are below."""

MIN_SHIFT = 1 / 12
"""Minimum distance of a repeated object, as a fraction of the shorter side."""

MIN_PEAK = 0.05


@dataclass(frozen=True)
class Defects:
    """Defect scores of images, from 0 (no defect) to 1.

    Attributes:
        cut_off: see `cut_off`.
        off_centre: see `off_centre`; 0 if the background is unknown.
        incompleteness: both scores combined; see `metrics.METRICS`.
        repetition: see `repetition`.
    """

    cut_off: Float[np.ndarray, " images"]
    off_centre: Float[np.ndarray, " images"]
    incompleteness: Float[np.ndarray, " images"]
    repetition: Float[np.ndarray, " images"]

    @property
    def lopsided(self) -> Float[np.ndarray, " images"]:
        """Deprecated: use `off_centre`."""
        warn_renamed("Defects.lopsided", "Defects.off_centre")
        return self.off_centre


def defects(images: UInt8[Tensor, "count 3 height width"], background: Colour | None = None) -> Defects:
    """Compute both defect scores of every image.

    Args:
        images: bytes, all of one size.
        background: red, green and blue from 0 to 1. Give it if objects are centred on a plain background. Otherwise the
            background is the median colour along the frame, and the position of an object is not scored.

    Examples:
        >>> image = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
        >>> image[:, :, :8, 8:24] = 0  # the frame cuts a square in half
        >>> defects(image).cut_off.round(2).tolist()
        [0.33]
    """
    differences = [_difference(image, background) for image in images]
    cut = np.array([cut_off(_foreground(d)) for d in differences])
    off = np.array([off_centre(_foreground(d)) if background else 0.0 for d in differences])
    return Defects(cut, off, 1 - (1 - cut) * (1 - off), np.array([repetition(d) for d in differences]))


def cut_off(foreground: Bool[np.ndarray, "height width"]) -> float:
    """Compute the fraction of an object's outline that is on the frame of the image.

    The score is F / (F + P). F counts the pixel edges where the object meets the frame, P those where it meets the
    background. A complete object has F = 0 at any size. An image without an object scores 1.

    Examples:
        >>> foreground = np.zeros((4, 4), dtype=bool)
        >>> foreground[1:3, 1:3] = True
        >>> cut_off(foreground)
        0.0
    """
    if not foreground.any():
        return 1.0
    frame = sum(int(edge.sum()) for edge in (foreground[0], foreground[-1], foreground[:, 0], foreground[:, -1]))
    vertical = (foreground[1:] != foreground[:-1]).sum()
    horizontal = (foreground[:, 1:] != foreground[:, :-1]).sum()
    return frame / (frame + int(vertical + horizontal))


def off_centre(foreground: Bool[np.ndarray, "height width"]) -> float:
    """Compute how far an object's centroid is from the image centre, beyond `CENTRED_RADIUS`.

    The distance is in half sides of the shorter side, scaled to [0, 1]. If complete objects are centred, an object that
    misses a part on one side is not. The score does not detect parts that are missing symmetrically. An image without
    an object scores 1.

    Examples:
        >>> foreground = np.zeros((8, 8), dtype=bool)
        >>> foreground[3:5, 3:5] = True
        >>> off_centre(foreground)
        0.0
    """
    if not foreground.any():
        return 1.0
    height, width = foreground.shape
    y, x = ndimage.center_of_mass(foreground)
    distance = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) / (min(height, width) / 2)
    return float(np.clip((distance - CENTRED_RADIUS) / (1 - CENTRED_RADIUS), 0, 1))


def repetition(difference: Float[np.ndarray, "height width 3"]) -> float:
    """Compute how similar an image is to a shifted copy of itself.

    Let d be the difference from the background, and rho(s) = sum_p <d(p), d(p + s)> / sum_p |d(p)|^2 its
    autocorrelation. The score is

        R = max over local maxima s of rho, |s| >= `MIN_SHIFT`, of rho(s) - min_{0 <= t <= 1} rho(t s)

    This is the height of a peak away from the origin, above the valley between them. A single object has one peak, at
    the origin, at any size. A second object at a distance of n pixels adds a peak at n. n x n copies score at most
    (n - 1) / n, because this fraction of the copies has a neighbour.

    Args:
        difference: the image minus its background, full scale 1.

    Examples:
        >>> difference = np.zeros((16, 64, 3))
        >>> difference[4:12, 4:12] = difference[4:12, 44:52] = 1
        >>> print(f"{repetition(difference):.2f}")
        0.50
    """
    height, width, _ = difference.shape
    shape = fft.next_fast_len(2 * height), fft.next_fast_len(2 * width)
    power = (np.abs(fft.rfft2(difference, s=shape, axes=(0, 1))) ** 2).sum(-1)
    rho = fft.fftshift(fft.irfft2(power, s=shape))
    centre = shape[0] // 2, shape[1] // 2
    if rho[centre] <= 0:
        return 0.0
    rho /= rho[centre]
    min_shift = MIN_SHIFT * min(height, width)
    window = max(3, int(min_shift) | 1)
    peaks = (rho == ndimage.maximum_filter(rho, size=window)) & (rho > MIN_PEAK)
    peaks[: centre[0]] = False  # rho(-s) = rho(s)
    highest = 0.0
    for y, x in zip(*np.nonzero(peaks), strict=True):
        dy, dx = y - centre[0], x - centre[1]
        steps = max(abs(dy), abs(dx))
        if np.hypot(dy, dx) < min_shift or rho[y, x] <= highest:
            continue
        path = np.linspace(0, 1, steps + 1)
        valley = ndimage.map_coordinates(rho, [centre[0] + path * dy, centre[1] + path * dx], order=1).min()
        highest = max(highest, float(rho[y, x] - valley))
    return highest


def _difference(
    image: UInt8[Tensor, "3 height width"], background: Colour | None
) -> Float[np.ndarray, "height width 3"]:
    """Return the image minus its background, full scale 1."""
    unit = np.asarray(image.permute(1, 2, 0).to(torch.float64) / 255)
    if background is None:
        frame = np.concatenate([unit[0], unit[-1], unit[:, 0], unit[:, -1]])
        return np.asarray(unit - np.median(frame, axis=0))
    return np.asarray(unit - np.array(background))


def _foreground(difference: Float[np.ndarray, "height width 3"]) -> Bool[np.ndarray, "height width"]:
    return np.asarray(np.abs(difference).max(-1) > FOREGROUND_THRESHOLD)


__getattr__ = renamed_names(__name__, lopsided=off_centre)
