"""Did it help? Entropy drift under every law, with error bars."""

from entropy_probe.validation.drift import Drift, entropy_drift
from entropy_probe.validation.outcome import Outcome, judge, validate, validate_sweep

__all__ = ["Drift", "Outcome", "entropy_drift", "judge", "validate", "validate_sweep"]
