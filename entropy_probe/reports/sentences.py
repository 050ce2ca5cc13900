"""The verdict of a report: sentences with their numbers."""

from __future__ import annotations

import math

import pandas as pd

from entropy_probe.estimation import POOLED, Derivation, Fit, LogLaw
from entropy_probe.laws import Measured, ScalingLaw
from entropy_probe.models import short_name
from entropy_probe.plots.tables import span

NAMED_LAYERS = 4
"""Maximum number of layers that a sentence names."""


def run_verdict(fit: Fit | None, kappa: pd.DataFrame | None, derivation: Derivation | None) -> list[str]:
    """Return the sentences on the entropy law, the scale factor, and the refinement of a run.

    Args:
        fit: the entropy law, if it was fitted.
        kappa: see `Derivation.kappa`; None if no law was derived.
        derivation: the derivation of the law, if it is known.
    """
    return [
        *(_law_sentences(fit) if fit else []),
        *(_kappa_sentences(kappa) if kappa is not None else []),
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
    explained = f"The token count and the layer explain {100 * pooled.r_squared:.1f} % of the variance of the entropy."
    slope = f"Slope b of H = a + b ln N: {pooled.slope:.3f}"
    if math.isnan(pooled.slope_low):
        sentences.append(f"{slope}. {explained}")
    else:
        inside = pooled.slope_low <= 1 <= pooled.slope_high
        sentences.append(
            f"{slope}. Its 95 % interval {'includes' if inside else 'excludes'} 1, the slope for logits whose variance "
            f"does not depend on N. {explained}"
        )
    ranked = fit.rivals[fit.rivals["layer"] == POOLED].dropna().sort_values("error")
    if len(ranked) > 1:
        best, *others = ranked.itertuples()
        rest = ", ".join(f"{row.form} {row.error:.3f}" for row in others)
        sentences.append(
            f"Best prediction of the entropy at a size left out of the fit: {best.form}, error {best.error:.3f} nats. "
            f"Errors of the other forms: {rest} nats."
        )
    return sentences


def _kappa_sentences(kappa: pd.DataFrame) -> list[str]:
    lowest, highest = kappa.loc[kappa["kappa"].idxmin()], kappa.loc[kappa["kappa"].idxmax()]
    sentences = []
    ours, paper = (1 + values.median() * math.log(4) for values in (kappa["kappa"], kappa["paper"]))
    if ours > 0 and paper > 0:  # also False for NaN
        sentences.append(
            f"With four times the training tokens, kappa gives a scale factor g of {math.sqrt(ours):.2f} in the "
            f"median layer; the paper's law gives {math.sqrt(paper):.2f}."
        )
    detail = (
        f"Kappa in g² = 1 + kappa ln(N/T): {lowest['kappa']:.2f} ({short_name(lowest['layer'])}) to "
        f"{highest['kappa']:.2f} ({short_name(highest['layer'])}), median {kappa['kappa'].median():.2f}; "
        f"paper {span(kappa['paper'])}."
    )
    bounded = kappa.dropna(subset=["low", "high", "paper"])
    if len(bounded):
        outside = int(((bounded["paper"] < bounded["low"]) | (bounded["paper"] > bounded["high"])).sum())
        detail += f" The paper's value is outside the 95 % interval in {outside} of {len(bounded)} layers."
    return [*sentences, detail]


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
