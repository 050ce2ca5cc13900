"""Test whether a metric differs between a law and the original model, or is equivalent, with Holm's correction."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict
from scipy import stats
from statsmodels.stats.multitest import multipletests

from entropy_probe.estimation.intervals import Estimate, crossed_mean
from entropy_probe.evaluation.metrics import MetricName, metric_and_network
from entropy_probe.models import Size
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Count, Number, Side

LEVEL, POWER = 0.05, 0.8
"""Significance level after Holm's correction, and the power that `MetricDifference.needed` refers to."""

EQUIVALENT, UNDECIDED = "equivalent", "not enough images"


@dataclass(frozen=True)
class MetricDifference:
    """A law compared with `original` at one size by one metric.

    The standard error takes prompts and seeds as random (`estimation.intervals.crossed_variance`).

    Attributes:
        law: name of the law.
        size: (height, width) in pixels.
        metric: name of the metric, with several networks `metric:network`.
        value: value of the metric under the law.
        difference: value under the law minus value under `original`.
        low: lower end of the 95 % interval of the difference. NaN with a single image.
        high: upper end.
        p: two-sided p value of the hypothesis of no difference, by Student's t, after Holm's correction over all
            comparisons of the run. If every image has the same difference, it comes from the sign test.
        verdict: `better`, `worse`, `equivalent`, or `not enough images` if neither a difference nor equivalence was
            shown.
        images: number of images under the law at this size.
        needed: number of images that would decide between a difference and equivalence with a power of 80 %, if the
            true difference is the measured one. None if the difference does not vary, or is unknown.
        error: standard error of the difference. NaN with a single image, and in files of version 0.1.0.
        margin: the equivalence margin of the metric, in the unit of the value.
        p_equivalent: p value of two one-sided tests (TOST) that the difference is beyond the margin, after Holm's
            correction. NaN in files of version 0.1.0.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    law: str
    size: tuple[Side, Side]
    metric: MetricName
    value: Number
    difference: Number
    low: Number
    high: Number
    p: Number
    verdict: str
    images: Count
    needed: Number | None
    error: Number = math.nan
    margin: Number = math.nan
    p_equivalent: Number = math.nan


def metric_difference(
    law: str,
    size: Size,
    metric: str,
    before: float,
    after: float,
    contributions: Float[np.ndarray, "prompts seeds"],
) -> MetricDifference:
    """Compute the interval and the uncorrected p values. The verdict and `needed` are left empty.

    Args:
        law: see `MetricDifference`.
        size: see `MetricDifference`.
        metric: see `MetricDifference`.
        before: value of the metric of the original model.
        after: value under the law.
        contributions: contribution of each image to the difference, whose mean has the standard error of the
            difference. For a mean over images, these are the differences of the images.

    Examples:
        >>> noise = np.linspace(-0.4, 0.4, 8)[:, None]
        >>> found = metric_difference("paper", (64, 64), "repetition", 0.4, 0.5, noise + 0.1)
        >>> print(f"[{found.low:.2f}, {found.high:.2f}], p = {found.p:.2f}")
        [-0.13, 0.33], p = 0.35
    """
    declared, _ = metric_and_network(metric)
    margin = declared.margin * (abs(before) if declared.relative else 1.0)
    estimate = replace(crossed_mean(contributions), value=after - before)
    low, high = estimate.interval()
    p, p_equivalent = _p_values(estimate, margin, len(contributions))
    images, error = contributions.size, estimate.error
    return MetricDifference(
        law, size, metric, after, estimate.value, low, high, p, "", images, None, error, margin, p_equivalent
    )


def _p_values(estimate: Estimate, margin: float, prompts: int) -> tuple[float, float]:
    """Return the p values of no difference, and of a difference beyond the margin."""
    if math.isnan(estimate.error):  # a single image has no spread
        return 1.0, 1.0
    if not estimate.error:  # every image has the same difference: sign test
        p = min(1.0, 2.0 ** (1 - prompts))
        return (p if estimate.value else 1.0), (p if abs(estimate.value) < margin else 1.0)
    p = 2 * stats.t.sf(abs(estimate.value) / estimate.error, estimate.degrees)
    return float(p), float(stats.t.sf((margin - abs(estimate.value)) / estimate.error, estimate.degrees))


def images_needed(difference: float, margin: float, deviation: float, comparisons: int = 1) -> float:
    """Return the number of images that decide between a difference and equivalence with a power of 80 %.

    The smaller of two numbers: those that a two-sided test needs to detect `difference`, and those that two one-sided
    tests need to show that it is within the margin. Both use the strictest step of Holm's correction, and normal
    quantiles.

    Args:
        difference: the true difference.
        margin: the equivalence margin.
        deviation: standard error of the difference, times the square root of the number of images.
        comparisons: number of comparisons in the run.

    Examples:
        >>> images_needed(0.5, 0.2, deviation=1.0)  # a medium effect: the usual table of the paired t test has 32 to 34
        32.0
        >>> images_needed(0.5, 0.2, deviation=1.0, comparisons=20)
        60.0
    """
    level = LEVEL / comparisons
    power = stats.norm.ppf(POWER)
    counts = []
    if difference:
        counts.append(((stats.norm.isf(level / 2) + power) * deviation / difference) ** 2)
    if abs(difference) < margin:
        one_sided = power if difference else stats.norm.ppf((1 + POWER) / 2)  # without a difference both tests can fail
        counts.append(((stats.norm.isf(level) + one_sided) * deviation / (margin - abs(difference))) ** 2)
    return float(np.ceil(min(counts)))


def detectable_difference(images: int, comparisons: int) -> float:
    """Return the difference that is detected with a power of 80 %, in standard deviations of the paired difference.

    For planning, before the images are sampled. The images are taken as independent.

    Args:
        images: number of images under each law at each size.
        comparisons: number of comparisons in the run.

    >>> print(f"{detectable_difference(32, 1):.2f}")
    0.50
    """
    quantiles = stats.norm.isf(LEVEL / comparisons / 2) + stats.norm.ppf(POWER)
    return float(quantiles / math.sqrt(images))


def corrected(differences: list[MetricDifference]) -> tuple[MetricDifference, ...]:
    """Apply Holm's correction to both families of p values, and set the verdicts and `needed`.

    Examples:
        >>> contributions = 0.2 + np.linspace(-0.01, 0.01, 8)[:, None]
        >>> found = metric_difference("paper", (64, 64), "repetition", 0.3, 0.5, contributions)
        >>> corrected([found])[0].verdict
        'worse'
    """
    if not differences:
        return ()
    p_values, p_equivalent = (
        multipletests(family, alpha=LEVEL, method="holm")[1]
        for family in ([d.p for d in differences], [d.p_equivalent for d in differences])
    )
    return tuple(
        replace(
            d,
            p=float(p),
            p_equivalent=float(equivalent),
            verdict=_verdict(d, float(p), float(equivalent)),
            needed=_needed(d, len(differences)),
        )
        for d, p, equivalent in zip(differences, p_values, p_equivalent, strict=True)
    )


def _needed(difference: MetricDifference, comparisons: int) -> float | None:
    """Return `MetricDifference.needed`."""
    if not difference.error > 0:  # also for NaN
        return None
    deviation = difference.error * math.sqrt(difference.images)
    return images_needed(difference.difference, difference.margin, deviation, comparisons)


def _verdict(difference: MetricDifference, p: float, p_equivalent: float) -> str:
    """Return `better` or `worse` if the difference is significant, even if it is within the margin."""
    if p < LEVEL and difference.difference:
        metric, _ = metric_and_network(difference.metric)
        return "better" if (difference.difference > 0) == metric.higher_is_better else "worse"
    return EQUIVALENT if p_equivalent < LEVEL else UNDECIDED
