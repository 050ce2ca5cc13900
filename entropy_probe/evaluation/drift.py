"""Entropy drift: the difference between the attention entropy at a size and at the training size."""

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
"""Columns by which H is averaged before |H(N) - H(T)| is computed.

A scaling law has one g per layer, so it can remove drift at the level `layer`. At the level `step`, heads and sampling
steps that drift in opposite directions within a layer do not cancel.
"""

Level = Literal["layer", "head", "step"]


@dataclass(frozen=True)
class Drift:
    """Mean |H(N) - H(T)| under one law at one size, with 95 % bootstrap intervals over prompts and seeds.

    Attributes:
        law: name of the law.
        size: (height, width) in pixels.
        level: see `LEVELS`.
        drift: nats.
        low: lower end of the interval of the drift, nats.
        high: upper end.
        removed: fraction of the drift of `original` that the law removes. 1 is all of it; negative values are an
            increase.
        removed_low: lower end of the interval of the fraction.
        removed_high: upper end.
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
    """Compute the drift of every law at every size except the training size.

    The reference H(T) is the entropy of the original model at the training size, for the same prompts and seeds.

    Args:
        frame: table of a sweep that includes the law `original` and the training size.
        training_size: (height, width) in pixels.
        level: see `LEVELS`.
        seeds: use only these seeds.

    Raises:
        InputError: if the table lacks the original model at the training size.

    Examples:
        >>> rows = [("original", 64, 3.0), ("original", 128, 4.0), ("paper", 128, 3.5)]
        >>> frame = pd.DataFrame(rows, columns=["law", "height", "entropy"]).assign(
        ...     width=64, kind="self", axes="spatial", layer="mid", prompt="cat", seed=0, scale_factor=1.0
        ... )
        >>> [(d.law, d.drift, d.removed) for d in entropy_drift(frame, (64, 64))]
        [('original', 1.0, 0.0), ('paper', 0.5, 0.5)]
    """
    rows = visual(frame[frame["scale_factor"] == 1.0])
    if seeds is not None:
        rows = rows[rows["seed"].isin(seeds)]
    keys = LEVELS[level]
    means = rows.groupby(["law", "height", "width", *keys, "prompt", "seed"], sort=False)["entropy"].mean()
    table = means.unstack(["prompt", "seed"])
    try:
        trained = table.loc[("original", *training_size)]
    except KeyError:
        height, width = training_size
        raise InputError(
            f"drift needs the original model at the training size {height}x{width}: add 'original' to laws and the "
            "training size to sizes"
        ) from None
    weights = bootstrap_weights(table.columns)
    sizes = sorted({(h, w) for _, h, w, *_ in table.index} - {training_size}, key=lambda s: s[0] * s[1])
    results = []
    for size in sizes:
        before = _drifts(table.loc[("original", *size)], trained, weights)
        for law in dict.fromkeys(rows["law"]):
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
    entropy: pd.DataFrame, trained: pd.DataFrame, weights: Float[np.ndarray, "resamples images"]
) -> Float[np.ndarray, " resamples"]:
    """Compute mean |H(N) - H(T)| for each weighting of the images."""
    difference = (entropy - trained.loc[entropy.index]).to_numpy(dtype=float)
    return np.asarray(np.abs(difference @ weights.T).mean(axis=0))


def bootstrap_weights(columns: pd.MultiIndex) -> Float[np.ndarray, "1+resamples images"]:
    """Return weights of the images for the bootstrap: equal weights first, then `RESAMPLES` resamples.

    Prompts and seeds are resampled separately, with replacement. Each row sums to 1.

    Args:
        columns: levels `prompt` and `seed`, one entry per image.

    Examples:
        >>> images = pd.MultiIndex.from_product([["cat", "dog"], [0, 1]], names=["prompt", "seed"])
        >>> bootstrap_weights(images)[0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    generator = np.random.default_rng(0)
    images = len(columns)
    weight = np.ones((RESAMPLES + 1, images))
    for name in ("prompt", "seed"):
        codes, values = pd.factorize(columns.get_level_values(name))
        counts = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
        weight[1:] *= counts[:, codes]
    weight[weight.sum(axis=1) == 0] = 1.0
    weight /= weight.sum(axis=1, keepdims=True)
    return weight
