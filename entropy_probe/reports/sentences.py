"""The verdict of a report: sentences with their numbers."""

from __future__ import annotations

import math

import pandas as pd

from entropy_probe.estimation import POOLED, Derivation, Fit, LogLaw
from entropy_probe.evaluation.differences import LEVEL
from entropy_probe.laws import Bound, Measured, ScalingLaw, format_factor
from entropy_probe.models import short_name
from entropy_probe.plots.numbers import span
from entropy_probe.plots.tables import factors_with_intervals

NAMED_LAYERS = 4
"""Maximum number of layers that a sentence names."""


def run_verdict(
    fit: Fit | None, law: ScalingLaw | None, derivation: Derivation | None, frame: pd.DataFrame
) -> list[str]:
    """Return the sentences on the entropy law, the scale factor, and the refinement of a run.

    Args:
        fit: the entropy law, if it was fitted.
        law: the derived law, if any.
        derivation: the derivation of the law, if it is known.
        frame: the measurements.
    """
    return [
        *(_law_sentences(fit) if fit else []),
        *(factor_sentences(law, frame, derivation) if law else []),
        *(_round_sentences(derivation) if derivation and derivation.rounds else []),
    ]


def rise(slope: float) -> str:
    """Return the rise of the entropy when the token count doubles.

    Examples:
        >>> rise(0.899)
        '0.62'
    """
    return f"{slope * math.log(2):.2f}"


def rise_with_interval(law: LogLaw) -> str:
    """Return the rise of the entropy when the token count doubles, with its 95 % interval and number of prompts."""
    if math.isnan(law.slope_low):
        return f"{rise(law.slope)} nats (one prompt: no interval)"
    interval = f"95 % interval {rise(law.slope_low)} to {rise(law.slope_high)}, {law.prompts} prompts"
    return f"{rise(law.slope)} nats ({interval})"


def _law_sentences(fit: Fit) -> list[str]:
    pooled = fit.pooled
    sentences = [f"When the token count doubles, attention entropy rises by {rise_with_interval(pooled)}."]
    explained = f"ln N explains {100 * pooled.r_squared:.1f} % of the variance of the entropy within a layer."
    slope = f"Slope b of H = a + b ln N: {pooled.slope:.3f}"
    if math.isnan(pooled.slope_low):
        sentences.append(f"{slope}. {explained}")
    else:
        inside = pooled.slope_low <= 1 <= pooled.slope_high
        sentences.append(
            f"{slope}. Its 95 % interval {'includes' if inside else 'excludes'} 1, the slope for logits whose variance "
            f"does not depend on N. {explained}"
        )
    if not math.isnan(pooled.bend_p):
        sentences.append(
            f"Below the training size the slope is {pooled.slope_below:.2f} "
            f"[{pooled.slope_below_low:.2f}, {pooled.slope_below_high:.2f}], above it {pooled.slope_above:.2f} "
            f"[{pooled.slope_above_low:.2f}, {pooled.slope_above_high:.2f}]. {_bend_sentence(pooled.bend_p)}"
        )
    ranked = fit.rivals[fit.rivals["layer"] == POOLED].dropna().sort_values("error")
    if len(ranked) > 1:
        best, *others = ranked.itertuples()
        rest = ", ".join(f"{row.form} {row.error:.3f}" for row in others)
        sentences.append(
            f"Best prediction of the entropy at a size left out of the fit: {best.form}, error {best.error:.3f} nats. "
            f"Errors of the other forms: {rest} nats. The ranking depends on the sizes of the sweep."
        )
    return sentences


def _bend_sentence(p: float) -> str:
    """Say whether one slope describes both sides of the training size."""
    if p < LEVEL:
        return f"One slope does not describe both sides (p = {p:.2g})."
    return f"A bend at the training size was not detected (p = {p:.2g})."


def factor_sentences(law: ScalingLaw, frame: pd.DataFrame, derivation: Derivation | None = None) -> list[str]:
    """Return the scale factors of a law next to the paper's, at the smallest and at the largest size of a run.

    Args:
        law: the derived law.
        frame: the measurements, for the layers and their token counts.
        derivation: the derivation of the law, for the bounds of its factors.
    """
    table = factors_with_intervals(law, frame, derivation)
    ratios = table.groupby("size", sort=False)["ratio"].mean()
    ends = dict.fromkeys((ratios.idxmin(), ratios.idxmax())) if len(ratios) else ()
    sentences = []
    for size in ends:
        own = table[table["size"] == size]
        sentences.append(
            f"At {size} px (N/T = {ratios[size]:.3g}), the {law.name} law has a scale factor g of "
            f"{_median(own)} in the median layer ({span(own)} over the layers); "
            f"the paper's law has {own['paper'].median():.2f}."
        )
    return sentences


def _median(table: pd.DataFrame) -> str:
    """Return the median scale factor, which is a bound if the factor of a layer in the middle is one."""
    ordered = table.sort_values("scale_factor")
    middle = ordered.iloc[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    bound: Bound = next((bound for bound in middle["bound"] if bound), "")
    return format_factor(middle["scale_factor"].mean(), bound)


def _round_sentences(derivation: Derivation) -> list[str]:
    first, refined = derivation.rounds[0], derivation.rounds[1:]
    before = f"Drift of the original model: {first.drift:.3f} nats."
    if refined:
        best = min(refined, key=lambda r: r.drift)
        error = "" if math.isnan(best.drift_se) else f" ± {best.drift_se:.3f}"
        rounds = "1 round" if len(refined) == 1 else f"the best of {len(refined)} rounds"
        sentences = [f"{before} After {rounds} of refinement: {best.drift:.3f}{error} nats."]
    else:
        sentences = [f"{before} The law was not refined by sampling."]
    if len(bound := derivation.unreachable):
        names = list(dict.fromkeys(map(short_name, bound["layer"])))
        more = f" and {len(names) - NAMED_LAYERS} more" if len(names) > NAMED_LAYERS else ""
        sentences.append(
            f"In {len(bound)} of {_pairs(derivation.law)} pairs of layer and size, g reached a bound of the search, "
            f"so the law cannot restore the entropy there: {', '.join(names[:NAMED_LAYERS])}{more}."
        )
    return sentences


def _pairs(law: ScalingLaw) -> int:
    """Return the number of pairs of layer and size of a measured law."""
    return sum(map(len, law.points.values())) if isinstance(law, Measured) else 0
