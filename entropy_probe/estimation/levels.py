"""The parts of a model that get their own scale factor: layers, heads, or heads at each sampling step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import pandas as pd

from entropy_probe.laws import Measured, MeasuredHeads, MeasuredSteps, ScalingLaw

Level = Literal["layer", "head", "step"]

_SEPARATORS = (" head ", " step ")
"""Between the name of a layer, its head and its step in the label of a part. Names of modules have no spaces."""

Points = tuple[tuple[float, float], ...]


def part_labels(rows: pd.DataFrame, level: Level) -> pd.Series:
    """Return the label of the part that each row of a table belongs to.

    >>> rows = pd.DataFrame({"layer": ["mid"], "head": [3], "step": [7]})
    >>> part_labels(rows, "layer").item(), part_labels(rows, "step").item()
    ('mid', 'mid head 3 step 7')
    """
    labels = rows["layer"].astype(str)
    for separator, column in zip(_SEPARATORS, ("head", "step"), strict=True):
        if level in ("head", "step") if column == "head" else level == "step":
            labels = labels + separator + rows[column].astype(str)
    return labels


def law_of_parts(points: dict[str, Points], level: Level, noise_levels: dict[int, float]) -> ScalingLaw:
    """Return the law with these points of each part.

    Args:
        points: pairs (ln(N/T), g) by label; see `part_labels`.
        level: see `Level`.
        noise_levels: noise level of each step.

    >>> law_of_parts({"mid head 0": ((1.4, 2.0),)}, "head", {})
    MeasuredHeads(points={'mid': (((1.4, 2.0),),)})

    A layer that does not run at a noise level, as in pipelines with two denoisers, has its points of the nearest one:

    >>> first, second = ((1.4, 2.0),), ((1.4, 3.0),)
    >>> law_of_parts({"a head 0 step 0": first, "b head 0 step 1": second}, "step", {0: 0.9, 1: 0.1}).points["a"]
    ((((1.4, 2.0),),), (((1.4, 2.0),),))
    """
    if level == "layer":
        return Measured(points)
    steps = sorted(noise_levels, key=lambda step: noise_levels[step]) if level == "step" else [0]
    nested: dict[str, dict[int, dict[int, Points]]] = {}
    for label, own in points.items():
        layer, head, step = _parsed(label)
        nested.setdefault(layer, {}).setdefault(step, {})[head] = own
    by_layer: dict[str, Any] = {}
    for layer, found in nested.items():
        own_steps = [_nearest(found, step, noise_levels) for step in steps]
        by_layer[layer] = tuple(tuple(found[step][head] for head in sorted(found[step])) for step in own_steps)
    if level == "step":
        return MeasuredSteps(tuple(noise_levels[step] for step in steps), by_layer)
    return MeasuredHeads({layer: levels[0] for layer, levels in by_layer.items()})


def _nearest(found: Collection[int], step: int, noise_levels: Mapping[int, float]) -> int:
    """Return the step among `found` with the nearest noise level."""
    return step if step in found else min(found, key=lambda own: abs(noise_levels[own] - noise_levels[step]))


def noise_levels(rows: pd.DataFrame, training_timesteps: int) -> dict[int, float]:
    """Return the mean noise level of each sampling step, as laws receive it; NaN if the timesteps are not times.

    Args:
        rows: table with the columns `step` and `timestep`, as the denoiser received it.
        training_timesteps: timesteps of the scheduler in training.

    >>> noise_levels(pd.DataFrame({"step": [0, 1], "timestep": [751.0, 1.0]}), 1000)
    {0: 0.751, 1: 0.001}
    >>> noise_levels(pd.DataFrame({"step": [0, 1], "timestep": [0.0, 0.5]}), 1000)  # the time runs the other way
    {0: 1.0, 1: 0.5}
    >>> noise_levels(pd.DataFrame({"step": [0, 1], "timestep": [1.1, -0.4]}), 1000)  # EDM: c_noise, not a time
    {0: nan, 1: nan}
    """
    times = rows.groupby("step")["timestep"].mean().sort_index()
    if times.isna().any() or (times < 0).any():
        return {int(step): math.nan for step in times.index}
    levels = times / training_timesteps if times.max() > 1 else times
    if len(levels) and levels.iloc[0] < (levels.iloc[-1] if len(levels) > 1 else 0.5):  # sampling starts with noise
        levels = 1 - levels
    return {int(step): float(min(1.0, max(0.0, level))) for step, level in levels.items()}


def factor_count(law: ScalingLaw) -> int:
    """Return the number of factors that were derived from data: 0 for a formula.

    >>> factor_count(Measured({"mid": ((-1.4, 0.5), (1.4, 2.0))}))
    2
    """
    law = getattr(law, "law", law)
    if isinstance(law, Measured):
        return sum(map(len, law.points.values()))
    if isinstance(law, MeasuredHeads):
        return sum(len(points) for heads in law.points.values() for points in heads)
    if isinstance(law, MeasuredSteps):
        return sum(len(points) for levels in law.points.values() for heads in levels for points in heads)
    return len(getattr(law, "logit_variance", ()))


def layer_of(label: str) -> str:
    """Return the layer of a part.

    >>> layer_of("mid head 3 step 7"), layer_of("mid")
    ('mid', 'mid')
    """
    return label.partition(_SEPARATORS[0])[0]


def _parsed(label: str) -> tuple[str, int, int]:
    rest, _, step = label.partition(_SEPARATORS[1])
    layer, _, head = rest.partition(_SEPARATORS[0])
    return layer, int(head), int(step or 0)
