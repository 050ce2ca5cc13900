"""Calibrate a scaling law: find the g with minimum denoising loss on real images of each size.

The loss is differentiable in g, and g has one value per layer or one value in total. So a few gradient steps find the
minimum, and the model itself does not change. The images are split into two halves. Each half is fitted separately and
evaluated on the other half, so the reported improvement does not include overfitting.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import ConfigDict
from scipy import stats
from torch import Tensor

from entropy_probe.attention import AttentionCall, attention_calls, find_denoiser
from entropy_probe.deprecation import renamed_arguments
from entropy_probe.errors import InputError
from entropy_probe.laws import Calibrated, check_unscaled, from_json, to_json
from entropy_probe.library_versions import rng_argument
from entropy_probe.models import CaptionedImages, Objective, Size, format_size, objective, training_size
from entropy_probe.progress import track
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Count, Number, Side, from_strict_json, to_strict_json

ALL_LAYERS = "*"
"""Key of a single g that applies to every layer."""

REACH_FRACTION = 0.9
"""Fraction of the largest possible change of ln g above which a calibration has probably not converged."""

MIN_IMAGES = 8
EVALUATION_BATCH = 32

EVALUATION_TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Timesteps at which a loss is evaluated, as fractions of the schedule (1 is pure noise)."""

POINT_COLUMNS = ["layer", "size", "ratio", "g", "g_first", "g_second"]


@dataclass(frozen=True)
class LossChange:
    """Relative change of the denoising loss at one size on held-out images.

    Attributes:
        size: (height, width) in pixels.
        change: mean loss with the law divided by mean loss without it, minus 1.
        low: lower end of the 95 % bootstrap interval over the images.
        high: upper end of the interval.
        images: number of images.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    size: tuple[Side, Side]
    change: Number
    low: Number
    high: Number
    images: Count


@dataclass(frozen=True)
class Unconverged:
    """A size whose factors were still changing when the calibration ended.

    Attributes:
        size: (height, width) in pixels.
        moving: number of factors that were still changing.
        factors: number of factors.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    size: tuple[Side, Side]
    moving: Count
    factors: Count


@dataclass(frozen=True)
class _Point:
    """A row of `Calibration.points`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: str
    size: tuple[Side, Side]
    ratio: Number
    g: Number
    g_first: Number
    g_second: Number


@dataclass(frozen=True)
class _CalibrationFile:
    """The fields that `Calibration.to_json` writes."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    law: dict[str, Any]
    points: list[_Point]
    changes: tuple[LossChange, ...]
    unconverged: tuple[Unconverged, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """A calibrated law, and the change of the loss on images that it was not fitted to.

    Attributes:
        law: the law to apply.
        points: columns `layer`, `size`, `ratio` (ln(N/T)), `g`, `g_first`, `g_second` (of the two halves).
        changes: the change of the held-out loss at each size.
        unconverged: the sizes whose factors had not converged. Empty in files of earlier versions.
    """

    law: Calibrated
    points: pd.DataFrame
    changes: tuple[LossChange, ...]
    unconverged: tuple[Unconverged, ...] = ()

    def table(self) -> pd.DataFrame:
        """Return the changes as a table, one row per size."""
        return pd.DataFrame([{**asdict(c), "size": format_size(c.size)} for c in self.changes])

    def to_json(self) -> str:
        """Return the law, the points and the changes as JSON text."""
        return to_strict_json(
            {
                "law": from_strict_json(dict[str, Any], to_json(self.law)),
                "points": self.points.to_dict("records"),
                "changes": [asdict(c) for c in self.changes],
                # Earlier versions refuse the field.
                **({"unconverged": [asdict(u) for u in self.unconverged]} if self.unconverged else {}),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Parse the text of `to_json`.

        Raises:
            InputError: if the text is not a calibration.
        """
        try:
            file = from_strict_json(_CalibrationFile, text)
            law = from_json(to_strict_json(file.law))
        except InputError as error:
            raise InputError(f"not a valid calibration: {error}") from error
        if not isinstance(law, Calibrated):
            raise InputError(f"not a valid calibration: its law is {law.name!r}, not 'calibrated'")
        return cls(
            law, pd.DataFrame([vars(p) for p in file.points], columns=POINT_COLUMNS), file.changes, file.unconverged
        )


@renamed_arguments(pictures="images")
def calibrate(
    pipeline: Any,
    images: CaptionedImages,
    sizes: Sequence[Size],
    *,
    per_layer: bool = True,
    steps: int = 60,
    batch: int = 16,
    rate: float = 0.05,
    seed: int = 0,
    progress: bool | str = True,
) -> Calibration:
    """Find the g with minimum denoising loss at every size, by gradient descent on ln g.

    Args:
        pipeline: a diffusers pipeline that `models.objective` supports.
        images: at least 8 captioned real images. They are split into two halves, each evaluated with the g of the
            other.
        sizes: (height, width) in pixels. The training size is a control: expect g = 1. It is not part of the law.
        per_layer: fit one g per layer of visual attention; otherwise one g for all layers.
        steps: steps of Adam for each size and half. The result is the average over the last half of the steps.
        batch: images per step.
        rate: learning rate of ln g.
        seed: random seed of the split, the batches and the noise.
        progress: show a progress bar; see `sweep`.

    Raises:
        InputError: if there are too few images, the pipeline has a law applied, or `models.objective` does not support
            the pipeline.

    Examples:
        >>> calibrate(pipeline, real_images, [(96, 96), (128, 128)]).law  # doctest: +SKIP
    """
    check_unscaled(pipeline)
    count = len(images.captions)
    if count < MIN_IMAGES:
        raise InputError(f"calibration needs at least {MIN_IMAGES} images, got {count}: add captioned real images")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    halves = order[: count // 2], order[count // 2 :]
    rows, changes, unconverged = [], [], []
    for size in track(sizes, "calibrating sizes", work=math.prod, shown=progress):
        loss = objective(pipeline, images.at(size), images.captions)
        fitted = [_fit(loss, half, per_layer, steps, batch, rate, seed) for half in halves]
        if moving := _still_moving(fitted, steps, rate):
            unconverged.append(Unconverged(size, len(moving), len(fitted[0])))
            _warn_not_converged(moving, fitted, size, steps, rate)
        changes.append(_held_out_change(loss, size, [(fitted[0], halves[1]), (fitted[1], halves[0])], seed))
        ratios = _log_ratios(loss, halves[0][:1])
        for layer in [ALL_LAYERS] if ALL_LAYERS in fitted[0] else ratios:
            first, second = (float(log_g[layer].exp()) for log_g in fitted)
            ratio = float(np.mean(list(ratios.values()))) if layer == ALL_LAYERS else ratios[layer]
            g = (first * second) ** 0.5
            rows.append({"layer": layer, "size": size, "ratio": ratio, "g": g, "g_first": first, "g_second": second})
    points = pd.DataFrame(rows, columns=POINT_COLUMNS)
    return Calibration(_law(points, training_size(pipeline)), points, tuple(changes), tuple(unconverged))


def _fit(
    loss: Objective, images: Tensor, per_layer: bool, steps: int, batch: int, rate: float, seed: int
) -> dict[str, Float[Tensor, ""]]:
    """Minimise the loss of the images with these indices. Return ln g of every layer, or of `ALL_LAYERS`."""
    denoiser = find_denoiser(loss.pipeline)
    names = list(_log_ratios(loss, images[:1])) if per_layer else [ALL_LAYERS]
    log_g = {name: torch.zeros((), device=loss.latents.device, requires_grad=True) for name in names}
    frozen = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(log_g.values(), lr=rate, betas=(0.9, 0.99))
    sums = {name: 0.0 for name in names}
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for step in range(steps):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            index = images[torch.randperm(len(images), generator=generator)[:batch]]
            with torch.enable_grad(), _scaled_by(denoiser, log_g):
                mean = loss.training_losses(index, generator).mean()
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            if step >= steps // 2:
                for name in names:
                    sums[name] += log_g[name].item()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return {name: torch.tensor(total / (steps - steps // 2)) for name, total in sums.items()}


def _reach(steps: int, rate: float) -> float:
    """Return how far Adam can move the mean of ln g over the last half of the steps: the learning rate per step."""
    return rate * (steps // 2 + 1 + steps) / 2


def _still_moving(fitted: list[dict[str, Float[Tensor, ""]]], steps: int, rate: float) -> list[str]:
    """Return the names whose ln g moved nearly as far as it can, so it was still moving."""
    limit = REACH_FRACTION * _reach(steps, rate)
    return [name for name in fitted[0] if any(abs(log_g[name]) > limit for log_g in fitted)]


def _warn_not_converged(
    moving: list[str], fitted: list[dict[str, Float[Tensor, ""]]], size: Size, steps: int, rate: float
) -> None:
    which = "g" if moving == [ALL_LAYERS] else f"g of {len(moving)} of {len(fitted[0])} layers"
    warnings.warn(
        f"at {format_size(size)}, {which} had not converged after {steps} steps, which reach g = "
        f"{math.exp(_reach(steps, rate)):.2g} at most: increase steps or rate",
        stacklevel=4,  # the caller of `calibrate`, which is decorated
    )


def _scaled_by(denoiser: Any, log_g: dict[str, Float[Tensor, ""]]) -> Any:
    """Return a context that scales visual attention by exp(log_g), differentiable in log_g."""

    def scale_factor(call: AttentionCall) -> Any:
        if not call.visual:
            return None
        return log_g[ALL_LAYERS if ALL_LAYERS in log_g else call.layer].exp().expand(call.query.shape[1])

    return attention_calls(denoiser, scale_factor)


@torch.no_grad()
def _held_out_change(
    loss: Objective, size: Size, folds: list[tuple[dict[str, Float[Tensor, ""]], Tensor]], seed: int
) -> LossChange:
    """Evaluate each fitted g on the other half, with the same images, noise and timesteps as without g."""
    denoiser = find_denoiser(loss.pipeline)
    before, after = [], []
    for log_g, images in folds:
        for index in images.split(EVALUATION_BATCH):
            before.append(_evaluation_losses(loss, index, seed))
            with _scaled_by(denoiser, log_g):
                after.append(_evaluation_losses(loss, index, seed))
    return LossChange(size, *relative_change(np.concatenate(before), np.concatenate(after)), len(loss.latents))


def _evaluation_losses(loss: Objective, images: Tensor, seed: int) -> Float[np.ndarray, " images"]:
    """Return the mean loss of each image over `EVALUATION_TIMESTEPS`."""
    losses = [loss.losses_at(images, int(t * loss.timesteps), seed) for t in EVALUATION_TIMESTEPS]
    return torch.stack(losses).mean(0).double().cpu().numpy()


def relative_change(
    before: Float[np.ndarray, " images"], after: Float[np.ndarray, " images"]
) -> tuple[float, float, float]:
    """Compute the relative change of the mean loss, with its 95 % bootstrap interval over the images.

    Returns:
        The change (0.1 is an increase by 10 %), and the lower and upper end of the interval. They are NaN with a
        single image.

    Examples:
        >>> relative_change(np.array([1.0, 2.0]), np.array([0.5, 1.0]))
        (-0.5, -0.5, -0.5)
    """

    def change(b: Any, a: Any, axis: int = -1) -> Any:
        return a.mean(axis) / b.mean(axis) - 1

    if len(before) < 2:
        return float(change(before, after)), math.nan, math.nan
    interval = stats.bootstrap(
        (before, after),
        change,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=2000,
        **rng_argument(stats.bootstrap, np.random.default_rng(0)),
    ).confidence_interval
    return float(change(before, after)), float(interval.low), float(interval.high)


@torch.no_grad()
def _log_ratios(loss: Objective, images: Tensor) -> dict[str, float]:
    """Return ln(N/T) of every layer of visual attention at the size of the images.

    Raises:
        InputError: if T of a layer is unknown.
    """
    ratios: dict[str, float] = {}

    def record(call: AttentionCall) -> None:
        if call.visual:
            if call.training_tokens is None:
                raise InputError(
                    f"the training size of the model is unknown, so T of layer {call.layer!r} is unknown: "
                    "set sample_size in the configuration of the denoiser"
                )
            ratios.setdefault(call.layer, float(np.log(call.tokens / call.training_tokens)))

    with attention_calls(loss.pipeline, record):
        zero = torch.zeros(len(images), dtype=torch.long)
        loss.losses(images, zero, torch.zeros_like(loss.latents[images]))
    return ratios


def _law(points: pd.DataFrame, trained: Size) -> Calibrated:
    """Return the law through the points. If several sizes have the same N, use the geometric mean of their g."""
    other_sizes = points[points["size"] != trained]
    knots: dict[str, tuple[tuple[float, float], ...]] = {}
    kappa: dict[str, float] = {}
    for layer, rows in other_sizes.groupby("layer", sort=False):
        means = np.exp(np.log(rows["g"]).groupby(rows["ratio"]).mean())
        means = means[means.index != 0]
        knots[str(layer)] = tuple((float(x), float(g)) for x, g in means.items())
        x = means.index.to_numpy(float)
        kappa[str(layer)] = float(x @ (means.to_numpy() ** 2 - 1) / (x @ x)) if len(x) else 0.0
    return Calibrated(knots, kappa)
