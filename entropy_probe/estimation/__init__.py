"""Fit H = a + b ln N to a sweep, and derive the scale factor that the model needs at each size."""

from entropy_probe.deprecation import renamed_names
from entropy_probe.estimation.calibration import Calibration, LossChange, Unconverged, calibrate
from entropy_probe.estimation.derivation import (
    Derivation,
    check_level,
    check_method,
    derive,
    derive_gaussian,
    derive_measured,
)
from entropy_probe.estimation.levels import factor_count
from entropy_probe.estimation.refinement import Round
from entropy_probe.estimation.regression import POOLED, Fit, LogLaw, fit, layer_means

__getattr__ = renamed_names(__name__, Change=LossChange)

__all__ = [
    "POOLED",
    "Calibration",
    "Derivation",
    "Fit",
    "LogLaw",
    "LossChange",
    "Round",
    "Unconverged",
    "calibrate",
    "check_level",
    "check_method",
    "derive",
    "derive_gaussian",
    "derive_measured",
    "factor_count",
    "fit",
    "layer_means",
]
