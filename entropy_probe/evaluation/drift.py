"""Entropy drift: how far the attention entropy at a size is from what it was at the training size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from entropy_probe.attention import visual
from entropy_probe.errors import InputError
from entropy_probe.models import Size

RESAMPLES = 1000
"""Bootstrap resamples of prompts and seeds."""

LEVELS = {"layer": ["layer"], "head": ["layer", "head"], "step": ["layer", "head", "step"]}
"""What H is averaged over before |H(N) - H(T)| is taken: nothing below the level is forgiven, all above it is.

A scaling law has one number per layer, so `layer` is what it can mend; `step` counts every head and every sampling step
by itself, also those that drift against each other inside a layer.
"""

Level = Literal["layer", "head", "step"]


@dataclass(frozen=True)
class Drift:
    """Mean |H(N) - H(T)| of one law at one size, nats, with 95 % bootstrap intervals over prompts and seeds.

    `removed` is the fraction of the drift of `original` that is gone: 1 is all, negative is worse than before.
    """

    law: str
    size: Size
    level: Level
    drift: float
    low: float
    high: float
    removed: float
    removed_low: float
    removed_high: float


def entropy_drift(
    frame: pd.DataFrame, training_size: Size, level: Level = "layer", *, seeds: tuple[int, ...] | None = None
) -> list[Drift]:
    """Drift of every law at every size but the training size.

    The reference H(T) is that of the original model at the training size, for the same prompts and seeds.

    Args:
        frame: rows of a sweep; `original` must be among the laws, the training size among its sizes.
        training_size: (height, width) in pixels.
        level: see `LEVELS`.
        seeds: use only these.

    Raises:
        InputError: if the original model was not sampled at the training size.
    """
    own = visual(frame[frame["scale_factor"] == 1.0])
    if seeds is not None:
        own = own[own["seed"].isin(seeds)]
    keys = LEVELS[level]
    means = own.groupby(["law", "height", "width", *keys, "prompt", "seed"], sort=False)["entropy"].mean()
    table = means.unstack(["prompt", "seed"])
    try:
        trained = table.loc[("original", *training_size)]
    except KeyError:
        raise InputError("drift needs the original model at the training size: sample it too") from None
    weights = resamples(table.columns)
    sizes = sorted({(h, w) for _, h, w, *_ in table.index} - {training_size}, key=lambda s: s[0] * s[1])
    results = []
    for size in sizes:
        before = _drifts(table.loc[("original", *size)], trained, weights)
        for law in dict.fromkeys(own["law"]):
            if (law, *size) not in table.index.droplevel(keys):
                continue
            after = _drifts(table.loc[(law, *size)], trained, weights)
            removed = 1 - after / before
            low, high = np.percentile(after[1:], [2.5, 97.5])
            removed_low, removed_high = np.percentile(removed[1:], [2.5, 97.5])
            results.append(
                Drift(law, size, level, *map(float, (after[0], low, high, removed[0], removed_low, removed_high)))
            )
    return results


def _drifts(
    here: pd.DataFrame, trained: pd.DataFrame, weights: Float[np.ndarray, "resamples images"]
) -> Float[np.ndarray, " resamples"]:
    """Mean |H(N) - H(T)| for every weighting of the images."""
    difference = (here - trained.loc[here.index]).to_numpy(dtype=float)
    return np.asarray(np.abs(difference @ weights.T).mean(axis=0))


def resamples(columns: pd.MultiIndex) -> Float[np.ndarray, "resamples images"]:
    """Weights of the images: all alike first, then prompts and seeds drawn with replacement."""
    generator = np.random.default_rng(0)
    images = len(columns)
    weight = np.ones((RESAMPLES + 1, images))
    for name in ("prompt", "seed"):
        codes, values = pd.factorize(columns.get_level_values(name))
        drawn = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
        weight[1:] *= drawn[:, codes]
    weight[weight.sum(axis=1) == 0] = 1.0
    weight /= weight.sum(axis=1, keepdims=True)
    return weight
