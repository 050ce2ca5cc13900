"""Write numbers for people: the digits that the uncertainty allows, and one value per cell of a table."""

from __future__ import annotations

import math

import pandas as pd

from entropy_probe.laws import format_factor

UNKNOWN = "–"
"""Shown if a number needs more than one prompt, or more than one size."""

INTERVAL = "95 % interval"
"""Title of a column of intervals."""

MAX_DECIMALS = 6


def decimals(scale: float) -> int:
    """Return the number of decimals that shows a number of the size `scale` with two digits.

    Args:
        scale: the smallest size that matters, such as an equivalence margin, or half of an interval.

    Examples:
        >>> decimals(1.0), decimals(0.05), decimals(250.0)
        (1, 3, 0)
    """
    if not scale or not math.isfinite(scale):
        return 3
    return min(MAX_DECIMALS, max(0, 1 - math.floor(math.log10(abs(scale)))))


def fixed(value: float, places: int = 3, sign: bool = False) -> str:
    """Return a number with a fixed number of decimals. Zero has no sign, also if it is rounded.

    Examples:
        >>> fixed(0.12345), fixed(-1e-9), fixed(6.57e-06, sign=True), fixed(math.nan)
        ('0.123', '0.000', '0.000', '–')
        >>> fixed(0.04, 2, sign=True), fixed(0.0, 2, sign=True)
        ('+0.04', '0.00')
    """
    if math.isnan(value):
        return UNKNOWN
    rounded = round(value, places)
    return f"{rounded:{'+' if sign and rounded else ''}.{places}f}" if rounded else f"{0.0:.{places}f}"


def number(value: float) -> str:
    """Return a number with three decimals.

    Examples:
        >>> number(0.12345), number(math.nan)
        ('0.123', '–')
    """
    return fixed(value, 3)


def between(low: float, high: float, places: int = 3, sign: bool = False) -> str:
    """Return an interval.

    Examples:
        >>> between(0.1, 0.2), between(-0.05, 0.1, 2, sign=True), between(math.nan, math.nan)
        ('0.100 to 0.200', '-0.05 to +0.10', '–')
        >>> between(0.0, 0.0)  # every image has the same value
        '0.000'
    """
    if math.isnan(low):
        return UNKNOWN
    if low == high:
        return fixed(low, places, sign)
    return f"{fixed(low, places, sign)} to {fixed(high, places, sign)}"


def with_error(value: float, error: float) -> str:
    """Return a value and its standard error.

    Examples:
        >>> with_error(0.5, 0.01), with_error(0.5, math.nan)
        ('0.500 ± 0.010', '0.500')
    """
    return number(value) if math.isnan(error) else f"{value:.3f} ± {error:.3f}"


def p_value(p: float) -> str:
    """Return a p value. Values below 0.001 are not shown in full.

    Examples:
        >>> p_value(0.0314), p_value(3e-9), p_value(1.0), p_value(math.nan)
        ('0.031', '< 0.001', '1.000', '–')
    """
    return "< 0.001" if p < 0.001 else number(p)


def span(factors: pd.DataFrame) -> str:
    """Return the range of the scale factors of a table, with their bounds.

    Examples:
        >>> span(pd.DataFrame({"scale_factor": [0.18, 6.0], "bound": ["", "at least"]}))
        '0.18 to at least 6.00'
    """
    ordered = factors.sort_values("scale_factor")
    ends = [format_factor(g, bound) for g, bound in zip(ordered["scale_factor"], ordered["bound"], strict=True)]
    return " to ".join(dict.fromkeys((ends[0], ends[-1])))
