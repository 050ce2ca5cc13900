"""Record on a derived law which model it was derived on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pandas as pd

from entropy_probe.estimation.levels import layer_of
from entropy_probe.laws import Origin, ScalingLaw, bounds_by_layer, sample_weights
from entropy_probe.runs import Sweep


def with_origin(law: ScalingLaw, sweep: Sweep, unreachable: pd.DataFrame) -> ScalingLaw:
    """Return a law with the model of its sweep.

    Args:
        law: a law that `derive` has made: a dataclass with the field `origin`.
        sweep: the sweep that it was derived from.
        unreachable: `Derivation.unreachable`.
    """
    frame, manifest = sweep.frame(), sweep.manifest
    trained = frame.dropna(subset=["training_tokens"]).groupby("layer", sort=False)["training_tokens"].first()
    height, width = manifest.training_size
    bounds = {"layer": list(map(layer_of, unreachable["layer"])), "tokens": list(unreachable["tokens"])}
    origin = Origin(
        model=manifest.model,
        fingerprint=manifest.fingerprint,
        pipeline=manifest.pipeline,
        training_size=(height, width),
        training_tokens={str(layer): int(tokens) for layer, tokens in trained.items()},
        weights=() if sweep.pipeline is None else sample_weights(sweep.pipeline),
        at_bounds=bounds_by_layer(bounds),
    )
    return cast(ScalingLaw, replace(cast(Any, law), origin=origin))
