"""Did it help? Entropy drift, image quality, text alignment and the two defects under every law, with error bars."""

from entropy_probe.evaluation.defect_scores import WHITE, Defects, defects
from entropy_probe.evaluation.drift import Drift, entropy_drift
from entropy_probe.evaluation.image_quality import HIGHER_IS_BETTER, Comparison, Quality, metric_and_network, quality
from entropy_probe.evaluation.networks import CRITIC, NAMED, Judge, judge_for
from entropy_probe.evaluation.validation import Outcome, outcome_of, validate, validate_sweep

__all__ = [
    "CRITIC",
    "HIGHER_IS_BETTER",
    "NAMED",
    "WHITE",
    "Comparison",
    "Defects",
    "Drift",
    "Judge",
    "Outcome",
    "Quality",
    "defects",
    "entropy_drift",
    "judge_for",
    "metric_and_network",
    "outcome_of",
    "quality",
    "validate",
    "validate_sweep",
]
