"""The denoising loss on real images as a function of g: the training objective of the model, at any size.

The images, the noise and the timesteps are the same for every g. So the comparison is paired, and takes minutes. A
comparison by Fréchet distance takes hours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field

from entropy_probe.deprecation import renamed_arguments, warn_renamed
from entropy_probe.errors import InputError
from entropy_probe.estimation.calibration import EVALUATION_BATCH, EVALUATION_TIMESTEPS, relative_change
from entropy_probe.laws import Constant, Kappa, ScalingLaw, scaled
from entropy_probe.models import CaptionedImages, Objective, Size, format_size, objective
from entropy_probe.progress import track
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Count, Finite, Side, from_strict_json, to_strict_json

SCALE_FACTORS = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
KAPPAS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
RESAMPLES = 1000
LOSS_COLUMNS = ["image", "loss", "size", "x", "timestep"]


_Loss = Annotated[Finite, Field(gt=0)]


@dataclass(frozen=True)
class _Losses:
    """The columns of `LossCurve.losses`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    size: list[tuple[Side, Side]]
    x: list[Finite]
    image: list[Count]
    timestep: list[Finite]
    loss: list[_Loss]


@dataclass(frozen=True)
class _CurveFile:
    """The fields that `LossCurve.to_json` writes."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    name: Literal["g", "kappa"]
    neutral: Finite
    losses: _Losses

    def __post_init__(self) -> None:
        columns = list(vars(self.losses).values())
        if len({len(column) for column in columns}) > 1:
            raise InputError("the columns of 'losses' must have the same length")
        rows = set(zip(self.losses.size, self.losses.x, self.losses.image, self.losses.timestep, strict=True))
        full = {(s, x, i, t) for s in {*columns[0]} for x in {*columns[1], self.neutral} for i in {*columns[2]}
                for t in {*columns[3]}}  # fmt: skip
        if not rows or rows != full or len(rows) < len(columns[0]):
            raise InputError(
                "'losses' must have one loss for every size, image, timestep and value, and the neutral value"
            )


@dataclass(frozen=True)
class LossCurve:
    """Denoising losses as a function of a number (g or kappa) at several sizes.

    Attributes:
        name: `g` or `kappa`.
        neutral: the value that leaves the model unchanged: 1 for g, 0 for kappa.
        losses: columns `size`, `x` (value of g or kappa), `image`, `timestep` (fraction of the schedule), `loss`.
    """

    name: str
    neutral: float
    losses: pd.DataFrame

    def table(self, *, by_timestep: bool = False) -> pd.DataFrame:
        """Return the relative change of the mean loss from the neutral value, with 95 % intervals over the images.

        With a single image, there are no intervals: they are NaN.

        Args:
            by_timestep: one row per size, timestep and value instead of one per size and value.

        Returns:
            Columns `size`, `timestep` (with `by_timestep`), the name of the number, `change`, `low`, `high`.
        """
        rows = []
        for keys, group in self.losses.groupby(["size", "timestep"] if by_timestep else ["size"], sort=False):
            values = group.groupby(["x", "image"])["loss"].mean().unstack("image")
            before = values.loc[self.neutral].to_numpy()
            labels = {"size": format_size(keys[0])} | ({"timestep": keys[1]} if by_timestep else {})
            for x, after in values.iterrows():
                change, low, high = relative_change(before, after.to_numpy())
                rows.append({**labels, self.name: x, "change": change, "low": low, "high": high})
        return pd.DataFrame(rows)

    def best(self) -> pd.DataFrame:
        """Find the minimum of the loss at each size: the vertex of a parabola through the three lowest neighbours.

        A minimum at the edge of the scan is not an optimum: the true minimum may be outside. Its value is NaN, and the
        text is "at least ..." or "at most ...".

        Returns:
            Columns `size`, the name of the number (NaN at an edge), `low`, `high` (95 % bootstrap interval over the
            images; NaN with a single image), `edge` (`lower`, `upper` or empty), `minimum` (the value, at an edge the
            end of the scan), `optimum` (text).
        """
        rows = []
        generator = np.random.default_rng(0)
        for size, group in self.losses.groupby("size", sort=False):
            values = group.groupby(["x", "image"])["loss"].mean().unstack("image")
            x, losses = values.index.to_numpy(float), values.to_numpy()
            resamples = generator.integers(losses.shape[1], size=(RESAMPLES, losses.shape[1]))
            minima = [_minimum(x, losses[:, index].mean(1))[0] for index in resamples]
            low, high = np.percentile(minima, [2.5, 97.5]) if losses.shape[1] > 1 else (math.nan, math.nan)
            value, edge = _minimum(x, losses.mean(1))
            inside = f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
            text = {"lower": f"at most {value:.2f}", "upper": f"at least {value:.2f}"}.get(edge, inside)
            where = {"size": format_size(size), self.name: math.nan if edge else value, "low": low, "high": high}
            rows.append({**where, "edge": edge, "minimum": value, "optimum": text})
        return pd.DataFrame(rows)

    def to_json(self) -> str:
        """Return the losses as JSON text."""
        fields = {"name": self.name, "neutral": self.neutral, "losses": self.losses.to_dict("list")}
        return to_strict_json(fields)

    @classmethod
    def from_json(cls, text: str) -> LossCurve:
        """Parse the text of `to_json`.

        Raises:
            InputError: if the text is not a loss curve.
        """
        try:
            file = from_strict_json(_CurveFile, text)
        except InputError as error:
            raise InputError(f"not a valid loss curve: {error}") from error
        return cls(file.name, file.neutral, pd.DataFrame(vars(file.losses))[LOSS_COLUMNS])


@renamed_arguments(pictures="images", multipliers="scale_factors")
def loss(
    pipeline: Any,
    images: CaptionedImages,
    sizes: Sequence[Size],
    scale_factors: Sequence[float] = SCALE_FACTORS,
    *,
    layers: Sequence[str] = ("*",),
    seed: int = 0,
    progress: bool | str = True,
) -> LossCurve:
    """Measure the denoising loss on real images as a function of g.

    Args:
        pipeline: a diffusers pipeline that `models.objective` supports.
        images: captioned real images; see `models.ImageFolder` and `reference.images`.
        sizes: (height, width) in pixels.
        scale_factors: values of g. The value 1 is added.
        layers: glob patterns of layer names, such as `mid_block*`. Other layers keep g = 1.
        seed: random seed of the noise.
        progress: show a progress bar; see `sweep`.

    Returns:
        The losses. `table()` returns the relative change at each g, `best()` the minimum at each size.

    Raises:
        InputError: if `sizes` is empty, every scale factor is 1, a law is applied to the pipeline, or
            `models.objective` does not support the pipeline.

    Examples:
        >>> curve = loss(pipeline, reference.images()[::20], [(128, 128)])  # doctest: +SKIP
        >>> curve.best()  # doctest: +SKIP
    """
    if not set(scale_factors) - {1.0}:
        raise InputError(f"scale_factors must have a value other than 1, got {tuple(scale_factors)}")
    laws = {g: Constant(g, tuple(layers)) for g in sorted({1.0, *scale_factors})}
    return LossCurve("g", 1.0, losses_under(pipeline, images, sizes, laws, seed=seed, progress=progress))


def loss_against_g(*args: Any, **kwargs: Any) -> LossCurve:
    """Measure the loss as a function of g. Deprecated: use `loss`."""
    warn_renamed("loss_against_g(...)", "loss(...)")
    return loss(*args, **kwargs)


@renamed_arguments(pictures="images")
def loss_against_kappa(
    pipeline: Any,
    images: CaptionedImages,
    sizes: Sequence[Size],
    kappas: Sequence[float] = KAPPAS,
    *,
    seed: int = 0,
    progress: bool | str = True,
) -> LossCurve:
    """Measure the loss under g^2 = 1 + kappa ln(N/T) as a function of kappa; see `loss` for the other arguments."""
    laws = {kappa: Kappa({"*": kappa}) for kappa in sorted({0.0, *kappas})}
    return LossCurve("kappa", 0.0, losses_under(pipeline, images, sizes, laws, seed=seed, progress=progress))


@torch.no_grad()
def losses_under(
    pipeline: Any,
    images: CaptionedImages,
    sizes: Sequence[Size],
    laws: Mapping[float, ScalingLaw],
    *,
    timesteps: Sequence[float] = EVALUATION_TIMESTEPS,
    seed: int = 0,
    progress: bool | str = True,
) -> pd.DataFrame:
    """Measure the loss of every image at every size and timestep under several laws.

    Args:
        pipeline: see `loss`.
        images: see `loss`.
        sizes: see `loss`.
        laws: the law of each value of the column `x`.
        timesteps: fractions of the schedule; 1 is pure noise.
        seed: random seed of the noise.
        progress: show a progress bar; see `sweep`.

    Returns:
        The table `LossCurve.losses`.

    Raises:
        InputError: if `sizes` is empty; see also `loss`.
    """
    if not sizes:
        raise InputError("sizes is empty: give at least one (height, width)")
    parts = []
    jobs = [(size, x) for size in sizes for x in laws]
    at_size: dict[Size, Objective] = {}
    for size, x in track(jobs, "denoising loss", work=lambda job: math.prod(job[0]), shown=progress):
        if size not in at_size:
            at_size = {size: objective(pipeline, images.at(size), images.captions)}
        with scaled(pipeline, laws[x]):
            for fraction in timesteps:
                losses = _losses(at_size[size], int(fraction * at_size[size].timesteps), seed)
                part = pd.DataFrame({"image": np.arange(len(losses)), "loss": losses})
                parts.append(part.assign(size=[size] * len(losses), x=x, timestep=fraction))
    return pd.concat(parts, ignore_index=True)[LOSS_COLUMNS]


def _losses(loss: Objective, timestep: int, seed: int) -> Float[np.ndarray, " images"]:
    """Return the loss of every image at one timestep."""
    index = torch.arange(len(loss.latents))
    parts = [loss.losses_at(part, timestep, seed) for part in index.split(EVALUATION_BATCH)]
    return np.asarray(torch.cat(parts).double().cpu())


def _minimum(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> tuple[float, str]:
    """Return x at the minimum of a parabola through the lowest point and its neighbours, and the edge it is at."""
    lowest = int(np.argmin(y))
    if lowest in (0, len(x) - 1):
        return float(x[lowest]), "upper" if lowest else "lower"
    near = slice(lowest - 1, lowest + 2)
    square, linear, _ = np.polyfit(x[near] - x[lowest], y[near], 2)
    return float(x[lowest] - linear / (2 * square)) if square > 0 else float(x[lowest]), ""
