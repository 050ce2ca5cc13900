"""Scaling laws, and applying them to a model."""

from entropy_probe.laws.attach import applied, apply, check_unscaled, remove, scaled
from entropy_probe.laws.bounds import MAX_FACTOR, MIN_FACTOR, Bound, bound_between, factor_bound, format_factor
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
)
from entropy_probe.laws.json_format import from_json, load_law, save_law, to_json
from entropy_probe.laws.resolving import resolve
from entropy_probe.laws.scaling import Scaling
from entropy_probe.laws.tables import factors

__all__ = [
    "DERIVED",
    "LAWS",
    "MAX_FACTOR",
    "MIN_FACTOR",
    "NEEDS_NOTHING",
    "Bound",
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
    "bound_between",
    "check_unscaled",
    "factor_bound",
    "factors",
    "format_factor",
    "from_json",
    "load_law",
    "remove",
    "resolve",
    "save_law",
    "scaled",
    "to_json",
]
