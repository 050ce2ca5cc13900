"""Entropy drift: the difference between the attention entropy at a size and at the training size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import ConfigDict

from entropy_probe.attention import visual
from entropy_probe.errors import InputError
from entropy_probe.estimation.intervals import crossed_mean, crossed_variance, jackknife, mean_square, root
from entropy_probe.models import Size
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Number, Side

LEVELS = {"layer": ["layer"], "head": ["layer", "head"], "step": ["layer", "head", "step"]}
"""Columns by which H is averaged before H(N) - H(T) is computed.

A scaling law has one g per layer, so it can remove drift at the level `layer`. At the level `step`, heads and sampling
steps that drift in opposite directions within a layer do not cancel.
"""

Level = Literal["layer", "head", "step"]


@dataclass(frozen=True)
class Drift:
    """Root mean square of H(N) - H(T) under one law at one size, with 95 % intervals over prompts.

    The square is estimated without bias (`estimation.intervals.mean_square`): noise alone gives a drift near 0. The
    intervals come from the jackknife over prompts. They are NaN with fewer than three prompts.

    Attributes:
        law: name of the law.
        size: (height, width) in pixels.
        level: see `LEVELS`.
        drift: nats.
        low: lower end of the interval of the drift, nats.
        high: upper end.
        removed: fraction of the drift of `original` that the law removes. 1 is all of it; negative values are an
            increase. NaN if the original model has no drift.
        removed_low: lower end of the interval of the fraction.
        removed_high: upper end.
        noise: standard error of H(N) - H(T) of one layer, head or step, root mean square over all of them, nats. A
            drift far below it cannot be told from 0. NaN with a single image.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    law: str
    size: tuple[Side, Side]
    level: Level
    drift: Number
    low: Number
    high: Number
    removed: Number
    removed_low: Number
    removed_high: Number
    noise: Number = float("nan")


def entropy_drift(
    frame: pd.DataFrame,
    training_size: Size,
    level: Level = "layer",
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Drift]:
    """Compute the drift of every law at every size except the training size.

    The reference H(T) is the entropy of the original model at the training size, for the same prompts and seeds.

    Args:
        frame: table of a sweep that includes the law `original` and the training size.
        training_size: (height, width) in pixels.
        level: see `LEVELS`.
        prompts: use only these prompts.
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
    differences = _differences(frame, training_size, level, prompts, seeds)
    results = []
    for (law, size), own in differences.items():
        drift = jackknife(mean_square, own.values)
        low, high = drift.interval()
        before = differences["original", size].values
        removed = jackknife(_ratio, np.stack([own.values, before]))
        ratio_low, ratio_high = removed.interval()
        variance, _ = crossed_variance(own.values)
        results.append(
            Drift(
                law, size, level, root(drift.value), root(low), root(high),
                1 - root(removed.value), 1 - root(ratio_high), 1 - root(ratio_low), root(float(variance.mean())),
            )
        )  # fmt: skip
    return results


def layer_drift(
    frame: pd.DataFrame,
    training_size: Size,
    level: Level = "layer",
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Compute the signed drift H(N) - H(T) of every layer under every law at every size except the training size.

    Args:
        frame: see `entropy_drift`.
        training_size: see `entropy_drift`.
        level: see `LEVELS`.
        prompts: see `entropy_drift`.
        seeds: see `entropy_drift`.

    Returns:
        Columns `law`, `size`, `layer` (with `level`: `head`, `step`), `drift` (nats), `low`, `high` (95 % interval over
        prompts and seeds).

    Raises:
        InputError: see `entropy_drift`.

    Examples:
        >>> rows = [("original", 64, 3.0), ("original", 128, 4.0), ("paper", 128, 2.5)]
        >>> frame = pd.DataFrame(rows, columns=["law", "height", "entropy"]).assign(
        ...     width=64, kind="self", axes="spatial", layer="mid", prompt="cat", seed=0, scale_factor=1.0
        ... )
        >>> layer_drift(frame, (64, 64))["drift"].tolist()
        [1.0, -0.5]
    """
    rows = []
    for (law, size), own in _differences(frame, training_size, level, prompts, seeds).items():
        for key, values in zip(own.series, own.values, strict=True):
            estimate = crossed_mean(values)
            low, high = estimate.interval()
            names = dict(zip(LEVELS[level], key, strict=True))
            rows.append({"law": law, "size": size, **names, "drift": estimate.value, "low": low, "high": high})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Differences:
    """H(N) - H(T) of each layer, head or step (nats), for each prompt and seed."""

    series: list[tuple[object, ...]]
    values: Float[np.ndarray, "series prompts seeds"]


def _differences(
    frame: pd.DataFrame,
    training_size: Size,
    level: Level,
    prompts: Sequence[str] | None,
    seeds: Sequence[int] | None,
) -> dict[tuple[str, Size], _Differences]:
    """Return the differences of every law and size, sorted by size, the laws in their order in the table."""
    rows = visual(frame[frame["scale_factor"] == 1.0])
    if prompts is not None:
        rows = rows[rows["prompt"].isin(prompts)]
    if seeds is not None:
        rows = rows[rows["seed"].isin(seeds)]
    keys = LEVELS[level]
    means = rows.groupby(["law", "height", "width", *keys, "prompt", "seed"], sort=False)["entropy"].mean()
    table = means.unstack("seed").unstack("prompt").swaplevel(axis=1).sort_index(axis=1)
    incomplete = set(table.columns[table.isna().any()].get_level_values("prompt"))
    table = table.loc[:, ~table.columns.get_level_values("prompt").isin(incomplete)]
    shape = [table.columns.get_level_values(name).nunique() for name in ("prompt", "seed")]
    try:
        trained = table.loc[("original", *training_size)]
    except KeyError:
        height, width = training_size
        raise InputError(
            f"drift needs the original model at the training size {height}x{width}: add 'original' to laws and the "
            "training size to sizes"
        ) from None
    sizes = sorted({(h, w) for _, h, w, *_ in table.index} - {training_size}, key=lambda s: s[0] * s[1])
    found = {}
    for size in sizes:
        for law in dict.fromkeys(rows["law"]):
            if (law, *size) in table.index.droplevel(keys):
                own = table.loc[(law, *size)]
                values = (own - trained.loc[own.index]).to_numpy(dtype=float).reshape(-1, *shape)
                series = [key if isinstance(key, tuple) else (key,) for key in own.index]
                found[law, size] = _Differences(series, values)
    return found


def _ratio(values: Float[np.ndarray, "laws series prompts seeds"]) -> float:
    """Return the mean square drift under a law, relative to the original model; NaN if the original model has none."""
    after, before = map(mean_square, values)
    return max(after, 0.0) / before if before > 0 else float("nan")
