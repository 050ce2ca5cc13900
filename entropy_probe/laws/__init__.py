"""Scaling laws, and applying them to a model."""

from entropy_probe.laws.laws import (
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
    from_json,
    resolve,
    to_json,
)
from entropy_probe.laws.scaling import applied, apply, remove, scaled

__all__ = [
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
    "ScalingLaw",
    "Yarn",
    "applied",
    "apply",
    "factors",
    "from_json",
    "remove",
    "resolve",
    "scaled",
    "to_json",
]
