"""The top of a report: three sentences, one table, and the terms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

import pandas as pd

from entropy_probe.evaluation import Drift, MetricDifference, in_order, metric_and_network
from entropy_probe.evaluation.differences import EQUIVALENT
from entropy_probe.models import REFERENCES, Size, format_size
from entropy_probe.plots.numbers import INTERVAL, UNKNOWN, between, fixed
from entropy_probe.plots.tables import images_needed, metric_decimals, removed_fraction
from entropy_probe.reports.results import RunResults

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

MARKS = {"better": "▲", "worse": "▼", EQUIVALENT: "="}
"""Mark of each verdict in the overview. Without a mark, a comparison is undecided."""

OVERVIEW_NOTE = (
    "▲ better and ▼ worse than the original model, = equivalent, no mark: too few images to decide. An arrow in a "
    "heading is the better direction. Changes are 95 % intervals of the difference from the original, in pairs of "
    "images. The marks are corrected for the number of comparisons. Images needed: about this number, median over the "
    "undecided scores, if the true differences are the measured ones."
)


def summary(results: RunResults) -> dict[str, str]:
    """Return four short texts by title: what was measured, whether a law helped, how sure that is, and what to do."""
    return {
        "Measured": _measured(results),
        "Did it help?": " ".join([*_helped(results), *_losses(results)]),
        "How sure?": _how_sure(results),
        "What next?": _next_step(results),
    }


def _measured(results: RunResults) -> str:
    grid, trained = results.sampled.grid, format_size(results.sweep.manifest.training_size)
    sizes = sorted(grid.sizes, key=lambda size: size[0] * size[1])
    span = " to ".join(dict.fromkeys(map(format_size, (sizes[0], sizes[-1]))))
    count = f"{len(sizes)} sizes" if len(sizes) > 1 else "one size"
    return (
        f"Attention entropy of a model trained at {trained} px, at {count} ({span} px), under "
        f"{_named([law.name for law in grid.laws])}."
    )


def _helped(results: RunResults) -> Iterator[str]:
    """Yield a sentence on each law that was sampled: the drift it removes, and the images."""
    if results.outcome is None:
        yield "No law was sampled, so this report does not show whether one helps."
        return
    for law in dict.fromkeys(d.law for d in results.outcome.drifts if d.law != "original"):
        removed = removed_fractions(results, law)
        if not removed:
            drift = "has no entropy change to remove"
        elif max(removed) < 0:
            drift = f"increases the entropy change by {_range([-value for value in removed])}"
        else:
            drift = f"removes {_range(removed)} of the entropy change"
        yield f"The {law} law {drift}, and {_images(comparisons(results, law))}."


def _images(compared: list[MetricDifference]) -> str:
    """Return a clause on the effect of a law on the images. A missing proof is not a proof of no effect."""
    if not compared:
        return "its images were not scored"
    counts = {verdict: sum(c.verdict == verdict for c in compared) for verdict in MARKS}
    undecided = len(compared) - sum(counts.values())
    effect = {
        (True, False): "improves the images",
        (False, True): "makes the images worse",
        (True, True): "improves some image scores and worsens others",
    }.get((counts["better"] > 0, counts["worse"] > 0))
    if effect is None:
        effect = "its effect on the images is undecided" if undecided else "its images are equivalent to the original"
    parts = [f"{verdict} in {count}" for verdict, count in counts.items() if count]
    parts += [f"undecided in {undecided}"] if undecided else []
    return f"{effect} ({', '.join(parts)} of {len(compared)} comparisons)"


def _next_step(results: RunResults) -> str:
    """Return what to do to decide what is open."""
    if results.sweep.manifest.model in REFERENCES:
        return (
            "Measure your own model, with --model and your prompts: the bundled one memorised its training images, so "
            "its images cannot show whether a law helps."
        )
    if results.outcome is None:
        return "Sample a law: entropy-probe validate."
    if not comparisons(results):
        return "Score the images: entropy-probe validate --metrics NETWORK --real-images FOLDER."
    needed = needed_in_the_median(undecided(results))
    if needed != UNKNOWN:
        return (
            f"Sample {in_words(needed)} images per size and law, with more --prompts or --seeds: half of the open "
            "comparisons can then be decided."
        )
    return "Look at the images, and use a law only if they are better: a restored entropy alone does not say so."


def _losses(results: RunResults) -> Iterator[str]:
    """Yield a sentence on the denoising loss of each scan, and of the calibrated law."""
    for name, table in results.losses.items():
        parts = []
        for size, own in table.groupby("size", sort=False):
            best = own.loc[own["change"].idxmin()]
            notes = [_percent(best["change"], best["low"], best["high"])] if best["change"] else []
            notes += ["undecided"] if best["low"] <= 0 <= best["high"] and best["change"] else []
            notes += ["the edge of the scan"] if best[name] in (own[name].min(), own[name].max()) else []
            noted = f" ({', '.join(notes)})" if notes else ""
            parts.append(f"{name} = {best[name]:.3g}{noted} at {size} px")
        yield f"The denoising loss on real images is lowest at {', '.join(parts)}."
    if results.calibration:
        parts = [
            f"{_percent(c.change, c.low, c.high)} at {format_size(c.size)} px" for c in results.calibration.changes
        ]
        yield f"The calibrated law changes the denoising loss on other images by {', '.join(parts)}."


def _percent(change: float, low: float, high: float) -> str:
    """Return a relative change in percent, with its interval.

    >>> _percent(-0.04, -0.05, -0.03)
    '-4.0 % [-5.0, -3.0]'
    """
    interval = "" if math.isnan(low) else f" [{fixed(100 * low, 1, sign=True)}, {fixed(100 * high, 1, sign=True)}]"
    return f"{fixed(100 * change, 1, sign=True)} %{interval}"


def _how_sure(results: RunResults) -> str:
    grid = results.sampled.grid
    images = f"{_counted(len(grid.prompts), 'prompt')} and {_counted(len(grid.seeds), 'seed')}"
    text = f"Based on {images} per size and law. Intervals are 95 %."
    if held_out := held_out_prompts(results):
        of = _counted(len(held_out), "prompt")
        text += f" The entropy change is measured on {of} that no law was derived from."
    compared, open_ones = comparisons(results), undecided(results)
    if not compared:
        return text
    if not open_ones:
        return f"{text} Every comparison of the images is decided."
    needed = needed_in_the_median(open_ones)
    about = "" if needed == UNKNOWN else f"; the median one needs {in_words(needed)}"
    return (
        f"{text} {len(open_ones)} of {len(compared)} comparisons of the images are undecided with "
        f"{open_ones[0].images} images{about}."
    )


def overview(results: RunResults) -> pd.DataFrame:
    """Return a row for each size and law: the drift removed, the image scores, and the images needed.

    The columns have two levels. Each cell has one value.
    """
    if results.outcome is None:
        return pd.DataFrame()
    before = {}
    if results.quality:
        before = {(row["size"], row["metric"]): row["value"] for row in results.quality.original.to_dict("records")}
    metrics = in_order({c.metric for c in comparisons(results)})
    rows = []
    for drift in results.outcome.drifts:
        if drift.level == "layer":
            own = {c.metric: c for c in comparisons(results, drift.law) if c.size == drift.size}
            removed, interval = removed_fraction(drift).values()
            row = {
                ("", "size, px"): format_size(drift.size),
                ("", "law"): drift.law,
                ("entropy change removed", "%"): removed,
                ("entropy change removed", INTERVAL): interval,
            }
            if metrics:
                row["images", "needed"] = needed_in_the_median(undecided(results, drift.law, drift.size))
            for metric in metrics:
                places = next(metric_decimals(c) for c in comparisons(results) if c.metric == metric)
                c = own.get(metric)
                value = c.value if c else before.get((drift.size, metric), math.nan)
                mark = MARKS.get(c.verdict, "") if c else ""
                row[metric_heading(metric), "score"] = f"{fixed(value, places)} {mark}".strip()
                row[metric_heading(metric), "change"] = between(c.low, c.high, places, sign=True) if c else UNKNOWN
            rows.append(row)
    return pd.DataFrame({column: [row[column] for row in rows] for column in rows[0]} if rows else {})


def metric_heading(metric: str) -> str:
    """Return the title of a metric with an arrow in the better direction.

    >>> metric_heading("kernel_distance:critic")
    'kernel distance by critic ↓'
    """
    declared, network = metric_and_network(metric)
    return f"{declared.title}{f' by {network}' if network else ''} {'↑' if declared.higher_is_better else '↓'}"


def removed_fractions(results: RunResults, law: str) -> list[float]:
    """Return the fraction of the drift that a law removes at each size at which the original model drifts."""
    drifts: tuple[Drift, ...] = results.outcome.drifts if results.outcome else ()
    own = [d.removed for d in drifts if d.law == law and d.level == "layer"]
    return [removed for removed in own if not math.isnan(removed)]


def comparisons(results: RunResults, law: str | None = None) -> list[MetricDifference]:
    """Return the comparisons of the images with the original model, of one law or of all."""
    compared = results.quality.comparisons if results.quality else ()
    return [c for c in compared if law is None or c.law == law]


def held_out_prompts(results: RunResults) -> tuple[str, ...]:
    """Return the prompts that the drift was measured on, if a law was derived from other ones; otherwise none."""
    used = results.outcome.prompts if results.outcome else ()
    return used if len(used) < len(results.sampled.grid.prompts) else ()


def undecided(results: RunResults, law: str | None = None, size: Size | None = None) -> list[MetricDifference]:
    """Return the comparisons that showed neither a difference nor equivalence, of one law and size or of all."""
    return [c for c in comparisons(results, law) if c.verdict not in MARKS and size in (None, c.size)]


def needed_in_the_median(compared: list[MetricDifference]) -> str:
    """Return the median number of images that undecided comparisons need."""
    needed = [c.needed for c in compared if c.needed is not None]
    return images_needed(median(needed), max(c.images for c in compared)) if needed else UNKNOWN


def _counted(count: int, name: str) -> str:
    """Return a number with its noun.

    >>> _counted(1, "prompt"), _counted(8, "prompt")
    ('1 prompt', '8 prompts')
    """
    return f"{count} {name}{'s' if count > 1 else ''}"


def in_words(needed: str) -> str:
    """Return the text of `images_needed` for a sentence.

    >>> in_words("23"), in_words("> 6")
    ('about 23', 'more than 6')
    """
    return needed.replace("> ", "more than ") if needed.startswith(">") else f"about {needed}"


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
