"""The two defects of images drawn at another size than trained, as numbers from 0 (none), from the image alone.

Both start from the foreground: how far each pixel is from the background colour, which is given or, for any model, the
median colour along the frame. `docs/defects.md` shows both on drawings that were cropped, erased and tiled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import fft, ndimage
from torch import Tensor

Colour = tuple[float, float, float]

WHITE: Colour = (1.0, 1.0, 1.0)
"""The background of the reference's domain."""

VISIBLE = 0.15
"""Difference from the background, as a fraction of the full scale, from which a pixel belongs to the object."""

CENTRED = 0.25
"""Distance of the centroid from the centre, in half sides, up to which an object is centred: 95 % of drawings are."""

NEAREST = 1 / 12
"""Least shift, as a fraction of the shorter side, at which a copy counts as another one."""

LEAST_PEAK = 0.05


@dataclass(frozen=True)
class Defects:
    """Defects of images.

    Attributes:
        cut_off: see `cut_off`.
        lopsided: see `lopsided`; 0 where the background is not known.
        incompleteness: 1 - (1 - cut_off) (1 - lopsided).
        repetition: see `repetition`.
    """

    cut_off: Float[np.ndarray, " images"]
    lopsided: Float[np.ndarray, " images"]
    incompleteness: Float[np.ndarray, " images"]
    repetition: Float[np.ndarray, " images"]


def defects(images: UInt8[Tensor, "count 3 height width"], background: Colour | None = None) -> Defects:
    """Both defects of every image.

    Args:
        images: of one size, bytes.
        background: red, green and blue from 0 to 1, where objects are known to lie centred on a plain ground. Without
            it the ground is the median colour along the frame, and an object may lie where it likes.
    """
    differences = [_difference(image, background) for image in images]
    cut = np.array([cut_off(_visible(d)) for d in differences])
    off = np.array([lopsided(_visible(d)) if background else 0.0 for d in differences])
    return Defects(cut, off, 1 - (1 - cut) * (1 - off), np.array([repetition(d) for d in differences]))


def cut_off(visible: Bool[np.ndarray, "height width"]) -> float:
    """Share of an object's outline that the frame draws.

    F / (F + P), with F the pixel edges where the object meets the frame and P those where it meets the background. A
    whole object has F = 0 at any size; the more the frame takes of it, the more of the rest is bounded by the frame. A
    image without an object counts as 1.
    """
    if not visible.any():
        return 1.0
    frame = sum(int(edge.sum()) for edge in (visible[0], visible[-1], visible[:, 0], visible[:, -1]))
    outline = int((visible[1:] != visible[:-1]).sum() + (visible[:, 1:] != visible[:, :-1]).sum())
    return frame / (frame + outline)


def lopsided(visible: Bool[np.ndarray, "height width"]) -> float:
    """How far an object's centroid is from the centre, in half sides of the shorter side, beyond `CENTRED`; at most 1.

    Where whole objects lie centred, one of which a part was left out does not. What is missing on both sides of the
    centre alike is not seen.
    """
    if not visible.any():
        return 1.0
    height, width = visible.shape
    y, x = ndimage.center_of_mass(visible)
    distance = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) / (min(height, width) / 2)
    return float(np.clip((distance - CENTRED) / (1 - CENTRED), 0, 1))


def repetition(difference: Float[np.ndarray, "height width 3"]) -> float:
    """How strongly an image resembles a shifted copy of itself.

    With d the difference from the background and rho(s) = sum_p <d(p), d(p + s)> / sum_p |d(p)|^2 its autocorrelation,

        R = max over local maxima s of rho, |s| >= `NEAREST`, of rho(s) - min_{0 <= t <= 1} rho(t s)

    that is, the height of a peak away from the origin above the valley between. An object on its own has a single hill
    at the origin, however large it is; two of them n pixels apart have another at n. n x n copies give at most
    (n - 1) / n, since that share of them has a neighbour.
    """
    height, width, _ = difference.shape
    shape = fft.next_fast_len(2 * height), fft.next_fast_len(2 * width)
    power = (np.abs(fft.rfft2(difference, s=shape, axes=(0, 1))) ** 2).sum(-1)
    rho = fft.fftshift(fft.irfft2(power, s=shape))
    centre = shape[0] // 2, shape[1] // 2
    if rho[centre] <= 0:
        return 0.0
    rho /= rho[centre]
    least = NEAREST * min(height, width)
    around = max(3, int(least) | 1)
    peaks = (rho == ndimage.maximum_filter(rho, size=around)) & (rho > LEAST_PEAK)
    peaks[: centre[0]] = False  # rho(-s) = rho(s)
    highest = 0.0
    for y, x in zip(*np.nonzero(peaks), strict=True):
        dy, dx = y - centre[0], x - centre[1]
        steps = max(abs(dy), abs(dx))
        if np.hypot(dy, dx) < least or rho[y, x] <= highest:
            continue
        way = np.linspace(0, 1, steps + 1)
        valley = ndimage.map_coordinates(rho, [centre[0] + way * dy, centre[1] + way * dx], order=1).min()
        highest = max(highest, float(rho[y, x] - valley))
    return highest


def _difference(
    image: UInt8[Tensor, "3 height width"], background: Colour | None
) -> Float[np.ndarray, "height width 3"]:
    unit = np.asarray(image.permute(1, 2, 0).to(torch.float64) / 255)
    if background is None:
        frame = np.concatenate([unit[0], unit[-1], unit[:, 0], unit[:, -1]])
        return np.asarray(unit - np.median(frame, axis=0))
    return np.asarray(unit - np.array(background))


def _visible(difference: Float[np.ndarray, "height width 3"]) -> Bool[np.ndarray, "height width"]:
    return np.asarray(np.abs(difference).max(-1) > VISIBLE)
