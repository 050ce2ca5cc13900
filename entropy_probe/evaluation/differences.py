"""Test whether a metric differs between a law and the original model, with a correction for multiple comparisons."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy import stats
from statsmodels.stats.multitest import multipletests

from entropy_probe.evaluation.metrics import metric_and_network
from entropy_probe.models import Size

LEVEL, POWER = 0.05, 0.8
"""Significance level after Holm's correction, and the power that `MetricDifference.needed` refers to."""

NOT_DETECTED = "no difference detected"


@dataclass(frozen=True)
class MetricDifference:
    """A law compared with `original` at one size by one metric.

    Attributes:
        law: name of the law.
        size: (height, width) in pixels.
        metric: name of the metric, with several networks `metric:network`.
        value: value of the metric under the law.
        difference: value under the law minus value under `original`.
        low: lower end of the 95 % bootstrap interval of the difference over prompts and seeds.
        high: upper end.
        p: two-sided p value after Holm's correction over all comparisons of the run. It comes from Student's t with the
            bootstrap standard error and (number of prompts - 1) degrees of freedom. If every prompt has the same
            difference, it comes from the sign test.
        verdict: `better`, `worse` or `no difference detected`.
        images: number of images under the law at this size.
        needed: number of images that would detect a difference of this size with a power of 80 %. None if the
            difference does not vary.
    """

    law: str
    size: Size
    metric: str
    value: float
    difference: float
    low: float
    high: float
    p: float
    verdict: str
    images: int
    needed: float | None


def metric_difference(
    law: str,
    size: Size,
    metric: str,
    value: float,
    difference: float,
    resampled: Float[np.ndarray, " resamples"],
    *,
    images: int,
    prompts: int,
) -> MetricDifference:
    """Compute the interval, the uncorrected p value and the number of images needed. The verdict is left empty.

    Args:
        law: see `MetricDifference`.
        size: see `MetricDifference`.
        metric: see `MetricDifference`.
        value: see `MetricDifference`.
        difference: see `MetricDifference`.
        resampled: the difference in each bootstrap resample.
        images: see `MetricDifference`.
        prompts: number of prompts.

    Examples:
        >>> resampled = np.linspace(-0.1, 0.3, 1001)
        >>> found = metric_difference("paper", (64, 64), "repetition", 0.5, 0.1, resampled, images=16, prompts=8)
        >>> print(f"[{found.low:.2f}, {found.high:.2f}], p = {found.p:.2f}")
        [-0.09, 0.29], p = 0.42
    """
    low, high = np.percentile(resampled, [2.5, 97.5])
    error = resampled.std(ddof=1)
    needed = None
    if not difference or images < 2:  # a single pair has no spread, so it cannot show a difference
        p = 1.0
    elif error:
        p = 2 * stats.t.sf(abs(difference) / error, df=max(1, prompts - 1))
        z = stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER)
        needed = float(np.ceil(images * (z * error / difference) ** 2))
    else:  # every prompt has the same difference: sign test
        p = min(1.0, 2.0 ** (1 - prompts))
    return MetricDifference(law, size, metric, value, difference, float(low), float(high), float(p), "", images, needed)


def corrected(differences: list[MetricDifference]) -> tuple[MetricDifference, ...]:
    """Apply Holm's correction to the p values, and set the verdicts.

    Examples:
        >>> resampled = np.linspace(0.19, 0.21, 1001)
        >>> found = metric_difference("paper", (64, 64), "repetition", 0.5, 0.2, resampled, images=16, prompts=8)
        >>> corrected([found])[0].verdict
        'worse'
    """
    if not differences:
        return ()
    _, p_values, _, _ = multipletests([d.p for d in differences], alpha=LEVEL, method="holm")
    return tuple(
        replace(d, p=float(p), verdict=_verdict(d, float(p))) for d, p in zip(differences, p_values, strict=True)
    )


def _verdict(difference: MetricDifference, p: float) -> str:
    """Return `better` or `worse` if the difference is significant."""
    if p >= LEVEL or not difference.difference:
        return NOT_DETECTED
    metric, _ = metric_and_network(difference.metric)
    return "better" if (difference.difference > 0) == metric.higher_is_better else "worse"
