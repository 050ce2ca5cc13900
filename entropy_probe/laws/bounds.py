"""Which factors of a law are only bounds: the search for g ended before the entropy was restored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from entropy_probe.laws.formulas import Calibrated, Measured
from entropy_probe.laws.site import ScalingLaw

MIN_FACTOR = 0.2
"""Smallest g of a measured law. A layer that needs less has an entropy near ln N."""

MAX_FACTOR = 6.0
"""Largest g of a measured law. A layer that needs more has an entropy near 0."""

Bound = Literal["at most", "at least", ""]
"""What is known of a factor: it should be at most, or at least, this number; empty if it was found."""


def bound_of(factor: float) -> Bound:
    """Return the bound of a measured factor.

    >>> bound_of(6.0), bound_of(1.5)
    ('at least', '')
    """
    return "at most" if factor <= MIN_FACTOR else "at least" if factor >= MAX_FACTOR else ""


def factor_bound(law: ScalingLaw, layer: str, tokens: int, training_tokens: int) -> Bound:
    """Return whether the g of a law is only a bound.

    Args:
        law: a law, or a derivation, which knows the bounds of its search.
        layer: full name of the attention layer.
        tokens: N.
        training_tokens: T.

    >>> law = Measured({"mid": ((math.log(4), 6.0),)})
    >>> factor_bound(law, "mid", tokens=4096, training_tokens=1024)
    'at least'
    """
    known = getattr(law, "factor_bound", None)  # of a derivation, whose package is above this one
    if known is not None:
        bound: Bound = known(layer, tokens, training_tokens)
        return bound
    if not isinstance(law, Measured) or isinstance(law, Calibrated):
        return ""
    points = law.points.get(layer, ())
    return bound_between([(x, bound_of(g)) for x, g in points], math.log(tokens / training_tokens))


def bound_between(points: Sequence[tuple[float, Bound]], ratio: float) -> Bound:
    """Return the bound of an interpolated factor: that of the points that it is computed from.

    Args:
        points: pairs of ln(N/T) and the bound there.
        ratio: ln(N/T) of the factor.

    >>> bound_between([(-1.4, ""), (1.4, "at least")], 0.7), bound_between([(1.4, "at least")], -0.7)
    ('at least', '')
    """
    if abs(ratio) < 1e-9:  # g is 1 at N = T
        return ""
    same_side = sorted((abs(x), bound) for x, bound in points if x * ratio > 0)
    within = [bound for x, bound in same_side if x >= abs(ratio) - 1e-9]
    exact = [bound for x, bound in same_side if abs(x - abs(ratio)) < 1e-9]
    below = [bound for x, bound in same_side if x < abs(ratio) - 1e-9]
    used = exact or [*within[:1], *(below[-1:] if within else below[-2:])]
    return next((bound for bound in used if bound), "")


def format_factor(factor: float, bound: Bound) -> str:
    """Return a factor as text, with its bound.

    >>> format_factor(6.0, "at least"), format_factor(1.5, "")
    ('at least 6.00', '1.50')
    """
    return f"{bound} {factor:.2f}".strip()
