"""Warnings at the top of a report: what its results cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from entropy_probe.models import REFERENCES, format_size
from entropy_probe.plots.numbers import UNKNOWN
from entropy_probe.plots.tables import images_needed
from entropy_probe.reports.results import RunResults
from entropy_probe.reports.summary import (
    comparisons,
    held_out_prompts,
    in_words,
    needed_in_the_median,
    removed_fractions,
    undecided,
)

FEW_PROMPTS = 8
"""With fewer prompts, the intervals are wide."""

RESTORED = 0.5
"""A law that removes a larger fraction of the drift at every size restores the entropy."""


def alerts(results: RunResults) -> list[str]:
    """Return warnings on what the results cannot show."""
    return [
        *_on_data(results),
        *_on_images(results),
        *_on_factors(results),
        *_on_losses(results),
        *_on_evidence(results),
    ]


def _on_data(results: RunResults) -> Iterator[str]:
    if results.sweep.manifest.model in REFERENCES:
        yield (
            "This bundled model memorised its training images. Its entropy is measured correctly, but its images do "
            "not show whether a law helps."
        )
    held_out = held_out_prompts(results)
    prompts = len(held_out or results.sweep.grid.prompts)
    if prompts < FEW_PROMPTS:
        missing = "the drift has no intervals" if prompts < 3 else "the intervals are wide"
        where = " that no law was derived from" if held_out else ""
        yield f"Few prompts: with {prompts}{where}, {missing}. Use {FEW_PROMPTS} or more."
    if results.outcome and results.outcome.in_sample:
        yield "A law is judged on the prompts that it was derived from. On other prompts it removes less."


def _on_images(results: RunResults) -> Iterator[str]:
    open_ones = undecided(results)
    if not open_ones:
        return
    about = ""
    if (needed := needed_in_the_median(open_ones)) != UNKNOWN:
        most = images_needed(max(c.needed for c in open_ones if c.needed is not None), open_ones[0].images)
        about = f" They need {in_words(needed)} in the median, and up to {most.replace('> ', 'more than ')}."
    yield (
        f"Too few images: {len(open_ones)} of {len(comparisons(results))} comparisons are undecided with "
        f"{open_ones[0].images} images.{about}"
    )


def _on_factors(results: RunResults) -> Iterator[str]:
    factors = results.factors
    if factors is not None and (factors["bound"] != "").any():
        bound = factors[factors["bound"] != ""]
        sizes = ", ".join(f"{count} at {size} px" for size, count in bound.groupby("size", sort=False).size().items())
        yield (
            f"Factors at their bounds: {len(bound)} of {len(factors)} ({sizes}). There the law cannot restore the "
            "entropy."
        )
    rounds = results.derivation.rounds if results.derivation else ()
    if len(rounds) > 1 and min(r.drift for r in rounds[1:]) >= rounds[0].drift:
        yield "The refinement of the measured law did not lower the drift."
    for one in results.calibration.unconverged if results.calibration else ():
        yield (
            f"The calibration at {format_size(one.size)} px did not converge: {one.moving} of {one.factors} factors "
            "were still changing, so their values are only bounds."
        )


def _on_losses(results: RunResults) -> Iterator[str]:
    for name, table in results.losses.items():
        for size, own in table.groupby("size", sort=False):
            best = own.loc[own["change"].idxmin(), name]
            if best in (own[name].min(), own[name].max()):
                yield f"The lowest denoising loss at {size} px is at the edge of the scan, {name} = {best:g}: widen it."


def _on_evidence(results: RunResults) -> Iterator[str]:
    """Yield the laws that restore the entropy but not the images or the loss."""
    laws = dict.fromkeys(d.law for d in results.outcome.drifts) if results.outcome else ()
    for law in laws:
        removed = removed_fractions(results, law)
        if not removed or min(removed) <= RESTORED:
            continue
        worse = [c for c in comparisons(results, law) if c.verdict == "worse"]
        if worse:
            yield (
                f"The evidence disagrees: the {law} law restores the entropy, but its images are worse in "
                f"{len(worse)} comparisons."
            )
    if "g" in results.losses and results.factors is not None and results.law is not None:
        for size, own in results.losses["g"].groupby("size", sort=False):
            loss = _loss_near(own, results.factors[results.factors["size"] == size])
            if loss is not None and loss["low"] > 0:
                yield (
                    f"The evidence disagrees: at {size} px the {results.law.name} law has a median factor near g = "
                    f"{loss['g']:g}, where the denoising loss is {100 * loss['change']:.1f} % higher than without it."
                )


def _loss_near(losses: pd.DataFrame, factors: pd.DataFrame) -> pd.Series | None:
    """Return the scanned g next to the median factor of a law; None if that is outside the scan."""
    g = factors["scale_factor"].median() if len(factors) else math.nan
    if not losses["g"].min() <= g <= losses["g"].max():
        return None
    return losses.loc[np.abs(np.log(losses["g"] / g)).idxmin()]
