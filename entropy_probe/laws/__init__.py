"""Scaling laws, and applying them to a model."""

from entropy_probe.laws.attach import applied, apply, check_unscaled, remove, scaled
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
from entropy_probe.laws.json_format import from_json, load_law, save_law, to_json
from entropy_probe.laws.resolving import resolve
from entropy_probe.laws.scaling import Scaling

__all__ = [
    "DERIVED",
    "LAWS",
    "NEEDS_NOTHING",
    "Calibrated",
    "Constant",
    "Gaussian",
    "Kappa",
    "Log",
    "Measured",
    "Original",
    "Paper",
    "Scaling",
    "ScalingLaw",
    "Yarn",
    "applied",
    "apply",
    "check_unscaled",
    "factors",
    "from_json",
    "load_law",
    "remove",
    "resolve",
    "save_law",
    "scaled",
    "to_json",
]
