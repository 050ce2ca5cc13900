"""The figures of a report, in order, with their captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from entropy_probe import plots
from entropy_probe.escape import for_html
from entropy_probe.evaluation import Quality, in_order
from entropy_probe.models import short_name
from entropy_probe.plots.tables import kappa_of_laws
from entropy_probe.reports.page import Shown
from entropy_probe.reports.prompts import chosen_prompts
from entropy_probe.reports.results import RunResults

SHOWN_PROMPTS = 4
"""Prompts whose images are shown: the laws differ most in half of them, and least in the other half."""

DEFECTS = ("incompleteness", "repetition")
"""Metrics that are shown in a separate figure."""

OPEN_PANELS = 20
"""Maximum number of layers whose panels are visible at once. The panels of larger models are folded."""


def run_figures(results: RunResults) -> Iterator[Shown]:
    """Yield the figures of a run."""
    prompt = results.sampled.grid.prompts[0]
    yield Shown(
        "One prompt at every size",
        f"“{for_html(prompt)}”, seed {results.sampled.grid.seeds[0]}, at equal height. Rows are laws, columns are "
        "sizes.",
        partial(plots.image_strip, results.sampled, prompt),
    )
    yield from _growth(results)
    yield from _layers(results)
    yield from _scaling(results)
    if results.quality:
        yield from _quality(results, results.quality)
    yield from _images(results)


def _growth(results: RunResults) -> Iterator[Shown]:
    """Yield the entropy against the number of tokens."""
    if results.fit is None:
        return
    section = "Entropy against the number of tokens"
    yield Shown(
        section,
        "Left: the mean entropy of each layer, coloured by depth. The dotted line is the maximum for N tokens. Right: "
        "the mean over the layers (dots) with 95 % intervals over the prompts, and four forms of H(N). The legend "
        "shows the error of each form at a size left out of its fit. In the Gaussian form, σ² is the measured logit "
        "variance, and only the constant c is fitted.",
        partial(plots.entropy_over_layers, results.fit),
    )
    yield Shown(
        section,
        "One panel per layer; each dot is the mean of one image. If the logit variance of a layer does not depend on "
        "N, its slope b is 1 and its line is parallel to the dotted maximum.",
        partial(plots.entropy_by_layer, results.fit),
        folded=len(results.fit.layers) - 1 > OPEN_PANELS,
    )


def _layers(results: RunResults) -> Iterator[Shown]:
    """Yield the entropy over timesteps, layers and heads, and over the image."""
    frame, trained = results.frame, results.sweep.manifest.training_size
    yield Shown(
        "Entropy during sampling",
        "Each line is one image size; bands are 95 % intervals over the prompts. A law that keeps the entropy moves "
        "every line onto the dashed line, the original model at the training size.",
        partial(plots.entropy_against_timestep, frame, trained),
    )
    original = frame[frame["law"] == "original"]
    if ((original["height"] == trained[0]) & (original["width"] == trained[1])).any():
        yield Shown(
            "Layers and heads",
            "Entropy of each head at the training size, and its change at the largest size. Layers are in network "
            "order, from the input (top) to the output.",
            partial(plots.layers_and_heads, frame, trained),
        )
    if results.entropy_maps:
        one = results.entropy_maps[0]
        yield Shown(
            "Entropy over the image",
            f"Entropy of each token in layer {short_name(one.layer)} at step {one.step}, mean over the heads, over a "
            "grey copy of the image. A law that keeps the entropy gives the colours of the training size.",
            partial(plots.maps_over_images, results.entropy_maps),
        )


def _scaling(results: RunResults) -> Iterator[Shown]:
    """Yield the scale factor, the drift and the denoising loss."""
    if results.factors is not None and len(results.factors):
        yield Shown(
            "The scale factor",
            "Scale factor g of each layer at each size, with its 95 % interval over the prompts. Strokes are the "
            "paper's values. An arrow marks a factor at a bound of the search: g may be further out in its direction.",
            partial(plots.factors_by_layer, results.factors),
        )
    if results.outcome:
        yield Shown(
            "Drift",
            "Left: difference of the mean entropy of a layer from its value at the training size, root mean square "
            "over the layers. Right: the fraction of it that each law removes. Lines are 95 % intervals over the "
            "prompts.",
            partial(plots.drift_by_law, results.outcome),
        )
    if results.losses:
        yield Shown(
            "The denoising loss",
            "Change of the model's training loss on real images of each size; lower is better. 0 % is the original "
            "model. Images, noise and timesteps are the same for every factor. Bands are 95 % intervals over the "
            "images.",
            partial(plots.loss_by_factor, results.losses),
        )


def _quality(results: RunResults, quality: Quality) -> Iterator[Shown]:
    """Yield the image metrics."""
    section, measured = "Quality, alignment and defects", {c.metric for c in quality.comparisons}
    groups = {
        "Metrics of the images under each law and of the original model (dashed)": measured - {*DEFECTS},
        "Two defects, shapes that are cut off and shapes that repeat": measured & {*DEFECTS},
    }
    images = max((c.images for c in quality.comparisons), default=0)
    for caption, metrics in groups.items():
        if metrics:
            yield Shown(
                section,
                f"{caption}: {images} images per law and size, same prompts and seeds. Bars are uncorrected 95 % "
                "intervals of the difference from the original. The verdicts in the table are corrected for the number "
                "of comparisons.",
                partial(plots.quality_by_law, quality, in_order(metrics)),
            )
    laws = results.sampled.grid.laws
    kappas = kappa_of_laws(laws, results.frame)
    if len(laws) > 2 and len(kappas):
        yield Shown(
            section,
            "The same metrics against the strength of the laws, as kappa at that size; the original model is at 0. "
            "Bars are 95 % intervals of the difference from the original.",
            partial(plots.quality_by_kappa, quality, kappas),
        )


def _images(results: RunResults) -> Iterator[Shown]:
    """Yield the images of some prompts."""
    sampled = results.sampled
    for prompt, difference in chosen_prompts(sampled, SHOWN_PROMPTS):
        change = f" The laws change its pixels by {100 * difference:.1f} % on average." if difference else ""
        yield Shown(
            "Images",
            f"“{for_html(prompt)}”, seed {sampled.grid.seeds[0]}.{change} Rows are laws, columns are sizes in pixels, "
            "all at the same scale. Known defects: cut-off shapes at small sizes, repeated shapes at large sizes.",
            partial(plots.image_grid, sampled, results.frame, prompt, results.quality),
        )
