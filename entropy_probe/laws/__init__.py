"""Scaling laws, and applying them to a model."""

from entropy_probe.laws.attach import applied, apply, check_unscaled, remove, scaled
from entropy_probe.laws.bounds import MAX_FACTOR, MIN_FACTOR, Bound, bound_between, factor_bound, format_factor
from entropy_probe.laws.catalogue import DERIVED, LAWS, NEEDS_NOTHING, law_by_name
from entropy_probe.laws.exporting import export
from entropy_probe.laws.formulas import Calibrated, Constant, Gaussian, Kappa, Log, Measured, Original, Paper
from entropy_probe.laws.json_format import LAW_FORMAT, from_json, load_law, parameters, save_law, to_json
from entropy_probe.laws.measured_parts import MeasuredHeads, MeasuredSteps
from entropy_probe.laws.origin import Origin, bounds_by_layer, origin_of, sample_weights
from entropy_probe.laws.published import HeadEntropy, LogPower, Pippo, TimeYarn, Yarn
from entropy_probe.laws.resolving import resolve
from entropy_probe.laws.scaling import Scaling
from entropy_probe.laws.site import ScalingLaw, Site, SiteLaw, changes_with_noise, factor_at
from entropy_probe.laws.tables import factors

__all__ = [
    "DERIVED",
    "LAWS",
    "LAW_FORMAT",
    "MAX_FACTOR",
    "MIN_FACTOR",
    "NEEDS_NOTHING",
    "Bound",
    "Calibrated",
    "Constant",
    "Gaussian",
    "HeadEntropy",
    "Kappa",
    "Log",
    "LogPower",
    "Measured",
    "MeasuredHeads",
    "MeasuredSteps",
    "Origin",
    "Original",
    "Paper",
    "Pippo",
    "Scaling",
    "ScalingLaw",
    "Site",
    "SiteLaw",
    "TimeYarn",
    "Yarn",
    "applied",
    "apply",
    "bound_between",
    "bounds_by_layer",
    "changes_with_noise",
    "check_unscaled",
    "export",
    "factor_at",
    "factor_bound",
    "factors",
    "format_factor",
    "from_json",
    "law_by_name",
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
