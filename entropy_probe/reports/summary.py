"""The top of a report: three sentences, alerts, one table, and the terms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

import pandas as pd

from entropy_probe.evaluation import Drift, MetricDifference, metric_and_network
from entropy_probe.evaluation.quality_summary import MAX_NEEDED
from entropy_probe.models import REFERENCES, format_size
from entropy_probe.plots.tables import UNKNOWN, with_interval
from entropy_probe.reports.results import RunResults

FEW_PROMPTS = 8
"""With fewer prompts, the intervals are wide."""

TERMS = {
    "Entropy H": "how widely a token attends, in nats: exp(H) is the effective number of tokens it attends to.",
    "Scale factor g": "the factor of a layer's softmax scale. g > 1 sharpens attention; g = 1 changes nothing.",
    "Law": "a rule for g, given the layer and the image size. The paper's law is g = √(ln N / ln T).",
    "N and T": "the number of image tokens of a layer: N at this size, T at the training size.",
    "Drift": "the difference of H from its value at the training size. A law removes 100 % if H is the same again.",
}
"""The terms that a reader of the page needs."""

PAPER = (
    "Jin et al., “Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis”, NeurIPS 2023, "
    "arXiv:2306.08645"
)


def summary(results: RunResults) -> list[str]:
    """Return three sentences: what was measured, whether a law helped, and how sure that is."""
    return [_measured(results), *_helped(results), _how_sure(results)]


def _measured(results: RunResults) -> str:
    grid, trained = results.sampled.grid, format_size(results.sweep.manifest.training_size)
    sizes = sorted(grid.sizes, key=lambda size: size[0] * size[1])
    span = " to ".join(dict.fromkeys(map(format_size, (sizes[0], sizes[-1]))))
    count = f"{len(sizes)} sizes" if len(sizes) > 1 else "one size"
    return (
        f"Measured: the attention entropy of a model trained at {trained} px, at {count} ({span} px), under "
        f"{_named([law.name for law in grid.laws])}."
    )


def _helped(results: RunResults) -> Iterator[str]:
    """Yield a sentence on each law that was sampled: the drift it removes, and the images."""
    if results.outcome is None:
        yield "No law was sampled, so this report does not show whether one helps."
        return
    for law in dict.fromkeys(d.law for d in results.outcome.drifts if d.law != "original"):
        removed = [d.removed for d in _layer_drifts(results, law) if not math.isnan(d.removed)]
        drift = f"removes {_range(removed)} of the entropy change" if removed else "has no entropy change to remove"
        yield f"The {law} law {drift}; {_images(results, law)}."


def _images(results: RunResults, law: str) -> str:
    compared = _comparisons(results, law)
    if not compared:
        return "its images were not scored"
    counts = {verdict: sum(c.verdict == verdict for c in compared) for verdict in ("better", "worse", "equivalent")}
    undecided = len(compared) - sum(counts.values())
    parts = [f"{verdict} in {count}" for verdict, count in counts.items() if count]
    parts += [f"undecided in {undecided}"] if undecided else []
    return f"its images are {', '.join(parts)} of {len(compared)} comparisons with the original"


def _how_sure(results: RunResults) -> str:
    grid = results.sampled.grid
    prompts, seeds = len(grid.prompts), len(grid.seeds)
    text = f"Based on {prompts} prompts and {seeds} {'seeds' if seeds > 1 else 'seed'}; intervals are 95 %"
    undecided = [c for c in _comparisons(results) if c.verdict not in ("better", "worse", "equivalent")]
    needed = [c.needed for c in undecided if c.needed is not None]
    if needed:
        most = min(median(needed), MAX_NEEDED)
        return (
            f"{text}. About {float(f'{most:.2g}'):,.0f} pairs of images would decide the median undecided comparison."
        )
    return f"{text}."


def alerts(results: RunResults) -> list[str]:
    """Return warnings on what the results cannot show."""
    return [*_alerts_on_data(results), *_alerts_on_laws(results)]


def _alerts_on_data(results: RunResults) -> Iterator[str]:
    prompts = len(results.sweep.grid.prompts)
    if results.sweep.manifest.model in REFERENCES:
        yield (
            "This bundled model memorised its training images. Its entropy is measured correctly, but its images do "
            "not show whether a law helps."
        )
    if prompts < FEW_PROMPTS:
        missing = "there are no intervals of the drift" if prompts < 3 else "the intervals are wide"
        yield f"Few prompts: with {prompts}, {missing}. Use {FEW_PROMPTS} or more."
    compared = _comparisons(results)
    undecided = [c for c in compared if c.verdict not in ("better", "worse", "equivalent")]
    if undecided:
        yield (
            f"Too few images: {len(undecided)} of {len(compared)} comparisons are undecided with "
            f"{undecided[0].images} pairs. The table of comparisons has the number that each needs."
        )


def _alerts_on_laws(results: RunResults) -> Iterator[str]:
    factors = results.factors
    if factors is not None and (factors["bound"] != "").any():
        bound = int((factors["bound"] != "").sum())
        yield f"Factors at their bounds: {bound} of {len(factors)}. There the law cannot restore the entropy."
    for name, table in results.losses.items():
        for size, own in table.groupby("size", sort=False):
            best = own.loc[own["change"].idxmin(), name]
            if best in (own[name].min(), own[name].max()):
                yield f"The lowest denoising loss at {size} px is at the edge of the scan, {name} = {best:g}: widen it."
    if results.outcome is None:
        return
    if results.outcome.in_sample:
        yield "A law is judged on the prompts that it was derived from. On other prompts it removes less."
    for law in dict.fromkeys(d.law for d in results.outcome.drifts):
        removed = [d.removed for d in _layer_drifts(results, law) if not math.isnan(d.removed)]
        worse = [c for c in _comparisons(results, law) if c.verdict == "worse"]
        if removed and min(removed) > 0.5 and worse:
            yield (
                f"The evidence disagrees: the {law} law restores the entropy, but its images are worse in "
                f"{len(worse)} comparisons."
            )


def overview(results: RunResults) -> pd.DataFrame:
    """Return a row for each size and law: the drift removed, the image scores, and the images needed."""
    if results.outcome is None:
        return pd.DataFrame()
    rows = []
    for drift in results.outcome.drifts:
        if drift.level == "layer" and drift.law != "original":
            own = [c for c in _comparisons(results, drift.law) if c.size == drift.size]
            removed, low, high = (100 * value for value in (drift.removed, drift.removed_low, drift.removed_high))
            row = {
                "size, px": format_size(drift.size),
                "law": drift.law,
                "entropy change removed, %": with_interval(removed, low, high, ".0f"),
            }
            row |= {
                _heading(c.metric): f"{with_interval(c.difference, c.low, c.high, '+.2g')} {c.verdict}" for c in own
            }
            needed = [c.needed for c in own if c.needed is not None]
            if own:
                row["images needed"] = f"{min(median(needed), MAX_NEEDED):,.0f}" if needed else UNKNOWN
            rows.append(row)
    return pd.DataFrame(rows)


def _heading(metric: str) -> str:
    """Return the title of a metric with an arrow in the better direction.

    >>> _heading("kernel_distance:critic")
    'kernel distance by critic ↓'
    """
    declared, network = metric_and_network(metric)
    return f"{declared.title}{f' by {network}' if network else ''} {'↑' if declared.higher_is_better else '↓'}"


def _layer_drifts(results: RunResults, law: str) -> list[Drift]:
    return [d for d in results.outcome.drifts if d.law == law and d.level == "layer"] if results.outcome else []


def _comparisons(results: RunResults, law: str | None = None) -> list[MetricDifference]:
    compared = results.quality.comparisons if results.quality else ()
    return [c for c in compared if law is None or c.law == law]


def _range(fractions: list[float]) -> str:
    """Return a range of fractions in percent.

    >>> _range([0.85, 0.97]), _range([0.2])
    ('85 to 97 %', '20 %')
    """
    ends = dict.fromkeys(f"{100 * value:.0f}" for value in (min(fractions), max(fractions)))
    return f"{' to '.join(ends)} %"


def _named(laws: list[str]) -> str:
    if laws == ["original"]:
        return "no scaling law"
    others = [law for law in laws if law != "original"]
    return f"the original model and the scaling {'laws' if len(others) > 1 else 'law'} {', '.join(others)}"
