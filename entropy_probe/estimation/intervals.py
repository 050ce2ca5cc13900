"""Standard errors and 95 % intervals over prompts and seeds.

Every prompt is sampled with every seed. Prompts and seeds are both random samples, so the images of one prompt are not
independent, and neither are those of one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error.

    Attributes:
        value: the number.
        error: its standard error; NaN if it is unknown.
        degrees: degrees of freedom of the error, for Student's t.
    """

    value: float
    error: float
    degrees: float

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval by Student's t; NaN if the error is unknown.

        >>> low, high = Estimate(1.0, 0.1, 9.0).interval()
        >>> print(f"{low:.3f} to {high:.3f}")
        0.774 to 1.226
        """
        half = t_quantile(self.degrees) * self.error
        return float(self.value - half), float(self.value + half)


def t_quantile(degrees: float) -> float:
    """Return the half-width of a 95 % interval in standard errors; NaN without degrees of freedom.

    >>> print(f"{t_quantile(1):.2f} {t_quantile(9):.2f} {t_quantile(1e6):.2f}")
    12.71 2.26 1.96
    """
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) if degrees >= 1 else float("nan")


def half_width(values: Any) -> pd.Series:
    """Return the half-width of the 95 % interval of the mean of each group; NaN for groups of one value.

    Args:
        values: a column of a pandas groupby.

    >>> table = pd.DataFrame({"size": [1, 1, 2], "entropy": [3.0, 4.0, 5.0]})
    >>> half_width(table.groupby("size")["entropy"]).round(2).tolist()
    [6.35, nan]
    """
    return values.sem() * values.count().map(lambda count: t_quantile(count - 1))


def crossed_variance(
    values: Float[np.ndarray, "*series prompts seeds"],
) -> tuple[Float[np.ndarray, "*series"], Float[np.ndarray, "*series"]]:
    """Estimate the variance of the mean over prompts and seeds, if both are random.

    With the mean squares of a two-way analysis of variance, the variance is (MS_prompts + MS_seeds - MS_rest) / n: the
    sum of the two variances would count the rest twice. The degrees of freedom are Satterthwaite's. (Searle, Casella,
    McCulloch, Variance Components, 1992, chapter 4.)

    With one seed, the result holds for that seed only, because its variance is unknown. With two, the degrees of
    freedom are few and the interval is wide.

    Args:
        values: a value for each prompt and seed.

    Returns:
        The variance of the mean, and its degrees of freedom. NaN and 0 for a single image.

    Examples:
        >>> prompts = np.array([[1.0], [2.0], [6.0]])  # one seed: the variance of the prompts / 3
        >>> variance, degrees = crossed_variance(prompts)
        >>> print(f"{variance:.3f} {degrees:.0f}")
        2.333 2
    """
    prompts, seeds = values.shape[-2:]
    if prompts * seeds == 1:
        return np.full(values.shape[:-2], np.nan), np.zeros(values.shape[:-2])
    degrees = np.array([prompts - 1, seeds - 1, (prompts - 1) * (seeds - 1)])
    squares = _mean_squares(values)
    of_prompts, of_seeds, rest = squares
    total = np.maximum(of_prompts + of_seeds - rest, np.maximum(of_prompts, of_seeds))  # not too small by chance
    spread = np.tensordot(1 / np.maximum(degrees, 1), squares**2, axes=1)
    with np.errstate(invalid="ignore"):
        satterthwaite = np.where(spread > 0, total**2 / spread, degrees[:2].max())
    fewest = min(d for d in degrees[:2] if d)
    return total / (prompts * seeds), np.clip(satterthwaite, fewest, degrees[:2].sum())


def _mean_squares(values: Float[np.ndarray, "*series prompts seeds"]) -> Float[np.ndarray, "3 *series"]:
    """Return the mean squares of the prompts, of the seeds, and of the rest; 0 without degrees of freedom."""
    prompts, seeds = values.shape[-2:]
    mean = values.mean(axis=(-2, -1), keepdims=True)
    by_prompt = values.mean(axis=-1, keepdims=True) - mean
    by_seed = values.mean(axis=-2, keepdims=True) - mean
    rest = values - mean - by_prompt - by_seed
    return np.stack(
        [
            seeds * (by_prompt**2).sum(axis=(-2, -1)) / max(prompts - 1, 1),
            prompts * (by_seed**2).sum(axis=(-2, -1)) / max(seeds - 1, 1),
            (rest**2).sum(axis=(-2, -1)) / max((prompts - 1) * (seeds - 1), 1),
        ]
    )


def crossed_mean(values: Float[np.ndarray, "prompts seeds"]) -> Estimate:
    """Return the mean over prompts and seeds; see `crossed_variance`.

    >>> crossed_mean(np.array([[1.0], [2.0], [6.0]])).value
    3.0
    """
    variance, degrees = crossed_variance(values)
    return Estimate(float(values.mean()), float(np.sqrt(variance)), float(degrees))


def jackknife(
    statistic: Callable[[Float[np.ndarray, "*series prompts seeds"]], float],
    values: Float[np.ndarray, "*series prompts seeds"],
) -> Estimate:
    """Return a statistic, with the standard error of the jackknife over prompts.

    The error is NaN with fewer than three prompts, because a statistic that corrects for the variance between prompts
    needs two of them.

    Args:
        statistic: a function of the values of all prompts.
        values: a value for each prompt and seed.

    Examples:
        >>> values = np.array([[1.0], [2.0], [6.0]])
        >>> print(f"{jackknife(np.mean, values).error:.3f} {crossed_mean(values).error:.3f}")  # equal for a mean
        1.528 1.528
    """
    value, prompts = statistic(values), values.shape[-2]
    if prompts < 3:
        return Estimate(float(value), float("nan"), 0.0)
    left_out = np.array([statistic(np.delete(values, prompt, axis=-2)) for prompt in range(prompts)])
    error = np.sqrt((prompts - 1) * np.mean((left_out - left_out.mean()) ** 2))
    return Estimate(float(value), float(error), float(prompts - 1))


def mean_square(differences: Float[np.ndarray, "*series prompts seeds"]) -> float:
    """Estimate the mean square of the true differences without bias. It can be negative.

    The mean of d^2 over noisy estimates d is too large by the variance of d, which is subtracted. With a single image
    the variance is unknown, and nothing is subtracted.

    Args:
        differences: of each series, such as a layer, for each prompt and seed.

    Examples:
        >>> print(f"{mean_square(np.array([[[1.0], [3.0]]])):.2f}")  # mean 2, variance of the mean 1
        3.00
    """
    of_prompts, of_seeds, rest = _mean_squares(differences)
    variance = (of_prompts + of_seeds - rest) / np.prod(differences.shape[-2:])
    return float((differences.mean(axis=(-2, -1)) ** 2 - variance).mean())


def root(square: float) -> float:
    """Return the square root of an estimate of a square; 0 if it is negative.

    >>> root(4.0), root(-1.0)
    (2.0, 0.0)
    """
    return float(np.sqrt(np.maximum(square, 0.0)))
