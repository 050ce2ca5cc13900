"""The calibrated scaling law: the g at which the denoising loss on real images of the new size is lowest.

The loss is differentiable in g, and there is one g per layer (or one for all), so a few gradient steps on a handful of
numbers find the minimum while the model stays as it is. Two halves of the images are calibrated apart, and each is
judged on the other: what is gained there is not fitted noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from entropy_probe.attention import AttentionCall, attention_calls, find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.laws import Calibrated, check_unscaled
from entropy_probe.models import CaptionedImages, Objective, Size, format_size, objective, training_size
from entropy_probe.progress import track

ALL = "*"
"""Stands for every layer where one g serves all."""

NEARLY = 0.9
"""Of the way that the learning rate allows: beyond it, a calibration is taken not to have arrived."""

LEAST_PICTURES = 8
JUDGED_AT_ONCE = 32

JUDGED_AT = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Timesteps, as shares of the schedule, at which a g is judged."""


@dataclass(frozen=True)
class Change:
    """Relative change of the held-out denoising loss at one size, with its 95 % interval over the images."""

    size: Size
    change: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Calibration:
    """A calibrated law, and what it changes on images that it was not fitted to.

    Attributes:
        law: to apply.
        points: `layer`, `size`, `ratio` (ln(N/T)), `g`, `g_first`, `g_second` (the two halves).
        changes: one for each size.
    """

    law: Calibrated
    points: pd.DataFrame
    changes: tuple[Change, ...]

    def table(self) -> pd.DataFrame:
        """The changes, a row per size."""
        return pd.DataFrame([{**asdict(c), "size": format_size(c.size)} for c in self.changes])


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
    progress: bool = True,
) -> Calibration:
    """Find the g of least denoising loss at every size.

    Args:
        pipeline: see `pipelines.objective`.
        images: captioned; two halves of them are calibrated apart and judge each other.
        sizes: (height, width) in pixels; at the training size g = 1 is what should come out, and it is left out of
            the law.
        per_layer: one g for each layer of visual attention, or one for all.
        steps: of Adam, for each size and half; the last half of them is averaged.
        batch: images a step.
        rate: learning rate of ln g.
        seed: of the halves, the batches and the noise.
        progress: show a progress bar.

    Raises:
        InputError: for too few images, a pipeline that has a law applied, or see `pipelines.objective`.
    """
    check_unscaled(pipeline)
    count = len(images.captions)
    if count < LEAST_PICTURES:
        raise InputError(f"calibration needs at least {LEAST_PICTURES} images, not {count}: half of them judge")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    halves = order[: count // 2], order[count // 2 :]
    rows, changes = [], []
    jobs = track(sizes, "calibrating sizes", work=math.prod, shown=progress)
    for size in jobs:
        asked = objective(pipeline, images.at(size), images.captions)
        found = [_fit(asked, half, per_layer, steps, batch, rate, seed) for half in halves]
        _warn_if_short(found, size, steps, rate)
        changes.append(_judge(asked, size, [(found[0], halves[1]), (found[1], halves[0])], seed))
        ratios = _ratios(asked, halves[0][:1])
        for layer in [ALL] if ALL in found[0] else ratios:
            first, second = (float(f[layer].exp()) for f in found)
            ratio = float(np.mean(list(ratios.values()))) if layer == ALL else ratios[layer]
            g = (first * second) ** 0.5
            rows.append({"layer": layer, "size": size, "ratio": ratio, "g": g, "g_first": first, "g_second": second})
    points = pd.DataFrame(rows)
    return Calibration(_law(points, training_size(pipeline)), points, tuple(changes))


def _fit(
    asked: Objective, images: Tensor, per_layer: bool, steps: int, batch: int, rate: float, seed: int
) -> dict[str, Float[Tensor, ""]]:
    """ln g of every layer, or of all under `ALL`, that the images of these numbers ask for."""
    denoiser = find_denoiser(asked.pipeline)
    names = list(_ratios(asked, images[:1])) if per_layer else [ALL]
    log_g = {name: torch.zeros((), device=asked.latents.device, requires_grad=True) for name in names}
    frozen = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(log_g.values(), lr=rate, betas=(0.9, 0.99))
    sums = {name: 0.0 for name in names}
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for step in range(steps):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            index = images[torch.randperm(len(images), generator=generator)[:batch]]
            with torch.enable_grad(), _multiplied(denoiser, log_g):
                loss = asked.training_losses(index, generator).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= steps // 2:
                for name in names:
                    sums[name] += log_g[name].item()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return {name: torch.tensor(total / (steps - steps // 2)) for name, total in sums.items()}


def _warn_if_short(found: list[dict[str, Float[Tensor, ""]]], size: Size, steps: int, rate: float) -> None:
    """Adam moves by the rate at most: an ln g that went nearly as far as that allows was still on its way."""
    reach = rate * (steps // 2 + 1 + steps) / 2  # of the mean over the last half
    short = [name for name in found[0] if any(abs(f[name]) > NEARLY * reach for f in found)]
    if short:
        named = "the one g" if short == [ALL] else f"g of {len(short)} of {len(found[0])} layers"
        warnings.warn(
            f"at {format_size(size)} {named} was still moving after {steps} steps, which reach g = "
            f"{math.exp(reach):.2g} at most: take more steps",
            stacklevel=3,
        )


def _multiplied(denoiser: Any, log_g: dict[str, Float[Tensor, ""]]) -> Any:
    """Scale visual attention by these g, so that gradients reach them."""

    def scale_factor(call: AttentionCall) -> Any:
        if not call.visual:
            return None
        return log_g[ALL if ALL in log_g else call.layer].exp().expand(call.query.shape[1])

    return attention_calls(denoiser, scale_factor)


@torch.no_grad()
def _judge(asked: Objective, size: Size, folds: list[tuple[dict[str, Float[Tensor, ""]], Tensor]], seed: int) -> Change:
    """What g changes on images it was not fitted to: same images, noise and timesteps with and without."""
    denoiser = find_denoiser(asked.pipeline)
    before, after = [], []
    for log_g, images in folds:
        for index in images.split(JUDGED_AT_ONCE):
            before.append(judged_losses(asked, index, seed))
            with _multiplied(denoiser, log_g):
                after.append(judged_losses(asked, index, seed))
    return Change(size, *relative_change(np.concatenate(before), np.concatenate(after)), len(asked.latents))


def judged_losses(asked: Objective, images: Tensor, seed: int) -> Float[np.ndarray, " images"]:
    """Mean loss of each image over the timesteps `JUDGED_AT`."""
    losses = [asked.losses_at(images, int(share * asked.timesteps), seed) for share in JUDGED_AT]
    return torch.stack(losses).mean(0).double().cpu().numpy()


def relative_change(
    before: Float[np.ndarray, " images"], after: Float[np.ndarray, " images"]
) -> tuple[float, float, float]:
    """Change of the mean loss, relative to `before`, with its 95 % bootstrap interval over the images."""

    def change(b: Any, a: Any, axis: int = -1) -> Any:
        return a.mean(axis) / b.mean(axis) - 1

    interval = stats.bootstrap(
        (before, after), change, paired=True, vectorized=True, method="percentile", n_resamples=2000, rng=0
    ).confidence_interval
    return float(change(before, after)), float(interval.low), float(interval.high)


@torch.no_grad()
def _ratios(asked: Objective, images: Tensor) -> dict[str, float]:
    """ln(N/T) of every layer of visual attention at this size.

    Raises:
        InputError: where T is not known.
    """
    found: dict[str, float] = {}

    def note(call: AttentionCall) -> None:
        if call.visual:
            if call.training_tokens is None:
                raise InputError(f"the tokens of layer {call.layer!r} at the training size are not known")
            found.setdefault(call.layer, float(np.log(call.tokens / call.training_tokens)))

    with attention_calls(asked.pipeline, note):
        zero = torch.zeros(len(images), dtype=torch.long)
        asked.losses(images, zero, torch.zeros_like(asked.latents[images]))
    return found


def _law(points: pd.DataFrame, trained: Size) -> Calibrated:
    """The law through the points; where two sizes have one N, the geometric mean of their g counts."""
    elsewhere = points[points["size"] != trained]
    knots: dict[str, tuple[tuple[float, float], ...]] = {}
    kappa: dict[str, float] = {}
    for layer, own in elsewhere.groupby("layer", sort=False):
        means = np.exp(np.log(own["g"]).groupby(own["ratio"]).mean())
        means = means[means.index != 0]
        knots[str(layer)] = tuple((float(x), float(g)) for x, g in means.items())
        x = means.index.to_numpy(float)
        kappa[str(layer)] = float(x @ (means.to_numpy() ** 2 - 1) / (x @ x)) if len(x) else 0.0
    return Calibrated(knots, kappa)
