"""The denoising loss as judge: the model's own objective on real images of a size, as a function of g.

The images, the noise and the timesteps are the same for every g, so that the comparison is paired and takes seconds
where a Fréchet distance takes hours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from entropy_probe.errors import InputError
from entropy_probe.estimation.calibration import JUDGED_AT, relative_change
from entropy_probe.laws import Constant, Kappa, ScalingLaw, scaled
from entropy_probe.models import CaptionedImages, Objective, Size, format_size, objective
from entropy_probe.progress import track

SCALE_FACTORS = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
KAPPAS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
PICTURES_AT_ONCE = 32
RESAMPLES = 1000


@dataclass(frozen=True)
class LossCurve:
    """Denoising losses against a number, g or kappa, at several sizes.

    Attributes:
        name: of the number.
        neutral: its value that leaves the model as it is: 1 for g, 0 for kappa.
        losses: a row per `size`, `x`, `image`, `timestep`: `loss`.
    """

    name: str
    neutral: float
    losses: pd.DataFrame

    def table(self, *, by_timestep: bool = False) -> pd.DataFrame:
        """Change of the mean loss relative to the neutral value, with 95 % intervals over the images."""
        rows = []
        for keys, own in self.losses.groupby(["size", "timestep"] if by_timestep else ["size"], sort=False):
            values = own.groupby(["x", "image"])["loss"].mean().unstack("image")
            before = values.loc[self.neutral].to_numpy()
            known = {"size": format_size(keys[0])} | ({"timestep": keys[1]} if by_timestep else {})
            for x, after in values.iterrows():
                change, low, high = relative_change(before, after.to_numpy())
                rows.append({**known, self.name: x, "change": change, "low": low, "high": high})
        return pd.DataFrame(rows)

    def best(self) -> pd.DataFrame:
        """Where the loss is least at each size: the vertex of a parabola through the three lowest neighbours.

        `low` and `high` are the 95 % bootstrap interval over the images; a least loss at the end of the tried range
        is reported as that end.
        """
        rows = []
        generator = np.random.default_rng(0)
        for size, own in self.losses.groupby("size", sort=False):
            values = own.groupby(["x", "image"])["loss"].mean().unstack("image")
            x, losses = values.index.to_numpy(float), values.to_numpy()
            drawn = generator.integers(losses.shape[1], size=(RESAMPLES, losses.shape[1]))
            vertices = [_vertex(x, losses[:, chosen].mean(1)) for chosen in drawn]
            low, high = np.percentile(vertices, [2.5, 97.5])
            rows.append({"size": format_size(size), self.name: _vertex(x, losses.mean(1)), "low": low, "high": high})
        return pd.DataFrame(rows)


def loss_against_g(
    pipeline: Any,
    images: CaptionedImages,
    sizes: Sequence[Size],
    scale_factors: Sequence[float] = SCALE_FACTORS,
    *,
    layers: Sequence[str] = ("*",),
    seed: int = 0,
    progress: bool = True,
) -> LossCurve:
    """The loss with the logits of some layers multiplied by g.

    Args:
        pipeline: see `pipelines.objective`.
        images: captioned.
        sizes: (height, width) in pixels.
        scale_factors: values of g; 1 is added.
        layers: globs of layer names, such as `mid_block*`; the other layers keep g = 1.
        seed: of the noise.
        progress: show a progress bar.

    Raises:
        InputError: see `pipelines.objective`.
    """
    laws = {g: Constant(g, tuple(layers)) for g in sorted({1.0, *scale_factors})}
    return LossCurve("g", 1.0, losses_under(pipeline, images, sizes, laws, seed=seed, progress=progress))


def loss_against_kappa(
    pipeline: Any,
    images: CaptionedImages,
    sizes: Sequence[Size],
    kappas: Sequence[float] = KAPPAS,
    *,
    seed: int = 0,
    progress: bool = True,
) -> LossCurve:
    """The loss under g^2 = 1 + kappa ln(N/T), one kappa for all layers; arguments as `loss_against_g`."""
    laws = {kappa: Kappa({"*": kappa}) for kappa in sorted({0.0, *kappas})}
    return LossCurve("kappa", 0.0, losses_under(pipeline, images, sizes, laws, seed=seed, progress=progress))


@torch.no_grad()
def losses_under(
    pipeline: Any,
    images: CaptionedImages,
    sizes: Sequence[Size],
    laws: Mapping[float, ScalingLaw],
    *,
    timesteps: Sequence[float] = JUDGED_AT,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """The loss of every image at every size and timestep (a share of the schedule) under laws that numbers name.

    Raises:
        InputError: for no sizes, or see `pipelines.objective`.
    """
    if not sizes:
        raise InputError("give at least one size to measure the loss at")
    parts = []
    jobs = [(size, x) for size in sizes for x in laws]
    asked: dict[Size, Objective] = {}
    for size, x in track(jobs, "denoising loss", work=lambda job: math.prod(job[0]), shown=progress):
        if size not in asked:
            asked = {size: objective(pipeline, images.at(size), images.captions)}
        with scaled(pipeline, laws[x]):
            for share in timesteps:
                losses = _losses(asked[size], int(share * asked[size].timesteps), seed)
                part = pd.DataFrame({"image": np.arange(len(losses)), "loss": losses})
                parts.append(part.assign(size=[size] * len(losses), x=x, timestep=share))
    return pd.concat(parts, ignore_index=True)


def _losses(asked: Objective, timestep: int, seed: int) -> Float[np.ndarray, " images"]:
    index = torch.arange(len(asked.latents))
    parts = [asked.losses_at(part, timestep, seed) for part in index.split(PICTURES_AT_ONCE)]
    return np.asarray(torch.cat(parts).double().cpu())


def _vertex(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> float:
    """x of the least y, by the parabola through the lowest point and its neighbours; an end stays an end."""
    lowest = int(np.argmin(y))
    if lowest in (0, len(x) - 1):
        return float(x[lowest])
    near = slice(lowest - 1, lowest + 2)
    square, linear, _ = np.polyfit(x[near] - x[lowest], y[near], 2)
    return float(x[lowest] - linear / (2 * square)) if square > 0 else float(x[lowest])
