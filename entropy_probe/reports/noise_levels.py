"""Compare runs at equal noise levels. Step n of a few-step model is not step n of another, or of another scheduler."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from entropy_probe.attention import visual
from entropy_probe.estimation.intervals import half_width
from entropy_probe.estimation.levels import noise_levels
from entropy_probe.laws.noise import TRAINING_TIMESTEPS
from entropy_probe.models import Size

NEAR = 0.01
"""Noise levels this far outside the range of a run count as its first or last one: 0.999 is 1 in other schedulers."""


def sampling_curve(frame: pd.DataFrame, training_size: Size) -> pd.DataFrame:
    """Return the mean entropy over the visual layers at each step of the original model, at the training size.

    Args:
        frame: the measurements of a sweep.
        training_size: (height, width) in pixels.

    Returns:
        Columns `noise_level` (from 1, noise, to 0; the timestep divided by 1000, or the time of a flow), `entropy` and
        `entropy_half_width` (of the 95 % interval over the prompts), nats. Empty if that size was not sampled.

    >>> row = {"height": 64, "width": 64, "law": "original", "prompt": "cat", "layer": "mid", "kind": "self"}
    >>> rows = [{**row, "axes": "spatial", "step": n, "timestep": 0.9 - n / 2, "entropy": 3.0 - n} for n in (0, 1)]
    >>> sampling_curve(pd.DataFrame(rows), (64, 64))["noise_level"].tolist()
    [0.9, 0.4]
    """
    here = (frame["height"] == training_size[0]) & (frame["width"] == training_size[1])
    own = visual(frame[here & (frame["law"] == "original")])
    by_layer = own.groupby(["step", "prompt", "layer"])["entropy"].mean()
    by_prompt = by_layer.groupby(["step", "prompt"]).mean().groupby("step")
    table = pd.DataFrame({"entropy": by_prompt.mean(), "entropy_half_width": half_width(by_prompt)}).reset_index()
    levels = noise_levels(own, TRAINING_TIMESTEPS) if len(own) else {}
    table.insert(0, "noise_level", table.pop("step").map(levels).astype(float))
    return table.dropna(subset="noise_level")


def at_equal_levels(curves: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the entropy of each run at the noise levels of the run with the fewest steps.

    The other runs are interpolated linearly. Noise levels that a run does not reach are left out.

    Args:
        curves: by run, the columns `noise_level` and `entropy` of `sampling_curve`.

    Returns:
        Column `noise_level` from 1 to 0, and one column per run, nats.

    >>> few = pd.DataFrame({"noise_level": [1.0, 0.5], "entropy": [4.0, 3.0]})
    >>> many = pd.DataFrame({"noise_level": [0.999, 0.6, 0.4, 0.0], "entropy": [5.0, 4.0, 3.0, 1.0]})
    >>> at_equal_levels({"turbo": few, "base": many}).to_dict("records")
    [{'noise_level': 1.0, 'turbo': 4.0, 'base': 5.0}, {'noise_level': 0.5, 'turbo': 3.0, 'base': 3.5}]
    """
    ordered = {run: curve.sort_values("noise_level") for run, curve in curves.items()}
    if not ordered:
        return pd.DataFrame(columns=["noise_level", *ordered])
    fewest = min(ordered.values(), key=len)["noise_level"].to_numpy()
    low = max(curve["noise_level"].min() for curve in ordered.values()) - NEAR
    high = min(curve["noise_level"].max() for curve in ordered.values()) + NEAR
    levels = fewest[(fewest >= low) & (fewest <= high)][::-1]
    columns = {run: np.interp(levels, curve["noise_level"], curve["entropy"]) for run, curve in ordered.items()}
    return pd.DataFrame({"noise_level": levels, **columns})
