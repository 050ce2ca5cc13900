"""Scaling laws, and applying them to a model."""

from entropy_probe.laws.attach import applied, apply, check_unscaled, remove, scaled
from entropy_probe.laws.exporting import export
from entropy_probe.laws.formulas import (
    DERIVED,
    LAWS,
    NEEDS_NOTHING,
    Calibrated,
    Constant,
    Gaussian,
    Kappa,
    Log,
    Measured,
    Original,
    Paper,
    ScalingLaw,
    Yarn,
    factors,
)
from entropy_probe.laws.json_format import LAW_FORMAT, from_json, load_law, parameters, save_law, to_json
from entropy_probe.laws.origin import Origin, bounds_by_layer, origin_of, sample_weights
from entropy_probe.laws.resolving import resolve
from entropy_probe.laws.scaling import Scaling

__all__ = [
    "DERIVED",
    "LAWS",
    "LAW_FORMAT",
    "NEEDS_NOTHING",
    "Calibrated",
    "Constant",
    "Gaussian",
    "Kappa",
    "Log",
    "Measured",
    "Origin",
    "Original",
    "Paper",
    "Scaling",
    "ScalingLaw",
    "Yarn",
    "applied",
    "apply",
    "bounds_by_layer",
    "check_unscaled",
    "export",
    "factors",
    "from_json",
    "load_law",
    "origin_of",
    "parameters",
    "remove",
    "resolve",
    "sample_weights",
    "save_law",
    "scaled",
    "to_json",
]
