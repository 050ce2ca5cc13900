"""Measure the effect of scaling laws: entropy drift, denoising loss, image metrics and two defects, with error bars.

The image metrics include the Fréchet distance (FID), the kernel distance (KID) and the text score (CLIPScore, also
written CLIP score). `metrics` declares each metric once and describes how it differs from the usual one.
"""

from entropy_probe.deprecation import renamed_names
from entropy_probe.evaluation.counting import ObjectCounts, count_objects
from entropy_probe.evaluation.critic import Critic, load_critic
from entropy_probe.evaluation.defect_scores import WHITE, Defects, defects
from entropy_probe.evaluation.differences import MetricDifference
from entropy_probe.evaluation.drift import Drift, entropy_drift, layer_drift
from entropy_probe.evaluation.image_quality import quality
from entropy_probe.evaluation.loss_curves import LossCurve, loss
from entropy_probe.evaluation.metrics import METRICS, Metric, in_order, metric_and_network
from entropy_probe.evaluation.networks import CRITIC, NAMED, Scorer, load_scorer
from entropy_probe.evaluation.quality_summary import Quality
from entropy_probe.evaluation.validation import Outcome, outcome_of, validate, validate_sweep

__getattr__ = renamed_names(__name__, Comparison=MetricDifference, Judge=Scorer, judge_for=load_scorer)

__all__ = [
    "CRITIC",
    "METRICS",
    "NAMED",
    "WHITE",
    "Critic",
    "Defects",
    "Drift",
    "LossCurve",
    "Metric",
    "MetricDifference",
    "ObjectCounts",
    "Outcome",
    "Quality",
    "Scorer",
    "count_objects",
    "defects",
    "entropy_drift",
    "in_order",
    "layer_drift",
    "load_critic",
    "load_scorer",
    "loss",
    "metric_and_network",
    "outcome_of",
    "quality",
    "validate",
    "validate_sweep",
]
