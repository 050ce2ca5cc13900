"""Fitting H(N) to a sweep, and deriving the scaling factor that the model needs."""

from entropy_probe.estimation.calibration import Calibration, calibrate
from entropy_probe.estimation.derivation import Derivation, Round, derive, derive_gaussian, derive_measured
from entropy_probe.estimation.regression import POOLED, Fit, LogLaw, fit, layer_means

__all__ = [
    "POOLED",
    "Calibration",
    "Derivation",
    "Fit",
    "LogLaw",
    "Round",
    "calibrate",
    "derive",
    "derive_gaussian",
    "derive_measured",
    "fit",
    "layer_means",
]
