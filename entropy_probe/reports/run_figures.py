"""The figures of a report, in order, with their captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from entropy_probe import plots
from entropy_probe.attention import visual
from entropy_probe.escape import for_html
from entropy_probe.evaluation import Quality, in_order
from entropy_probe.models import format_size, short_name
from entropy_probe.plots import Panel
from entropy_probe.plots.tables import kappa_of_laws, metric_label
from entropy_probe.reports.page import Shown
from entropy_probe.reports.results import RunResults

OPEN_PANELS = 20
"""Maximum number of layers whose panels are visible at once. The panels of larger models are folded."""


def run_figures(results: RunResults) -> Iterator[Shown]:
    """Yield the figures of a run. Figures with one panel are drawn by a `Panel`, at any width."""
    yield from _drift(results)
    if results.quality:
        yield from _quality(results, results.quality)
    yield from _losses(results)
    yield from _growth(results)
    yield from _factors(results)
    yield from _layers(results)


def _drift(results: RunResults) -> Iterator[Shown]:
    """Yield the drift under each law, and the fraction of it that each law removes."""
    if not results.outcome:
        return
    yield Shown(
        "Drift",
        "Difference of the mean entropy of a layer from its value at the training size, root mean square over the "
        "layers; lower is better. The training size has no drift. Lines are 95 % intervals over the prompts.",
        Panel("drift", partial(plots.draw_drift, outcome=results.outcome)),
    )
    yield Shown(
        "Drift",
        "The fraction of the original drift that each law removes. 100 % (dotted) restores the entropy; a bar below 0 "
        "increases the drift. Lines are 95 % intervals over the prompts.",
        Panel("drift-removed", partial(plots.draw_removed, outcome=results.outcome)),
    )


def _quality(results: RunResults, quality: Quality) -> Iterator[Shown]:
    """Yield the change of each image metric."""
    section = "Quality, alignment and defects"
    images = max((c.images for c in quality.comparisons), default=0)
    for metric in in_order({c.metric for c in quality.comparisons}):
        yield Shown(
            section,
            f"Change of the {metric_label(metric)}.",
            Panel(f"change-{metric.replace(':', '-')}", partial(plots.draw_change, quality=quality, metric=metric)),
            intro=f"Changes from the original model: {images} images per law and size, same prompts and seeds, "
            "uncorrected 95 % intervals. Filled dots are decided after the correction for the number of comparisons; "
            "hollow dots need more images. Grey bands are equivalence margins.",
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


def _losses(results: RunResults) -> Iterator[Shown]:
    """Yield the denoising loss against each number that was scanned."""
    for name, table in results.losses.items():
        yield Shown(
            "The denoising loss",
            f"Change of the model's training loss on real images of each size against {name}; lower is better. 0 % is "
            "the original model. Images, noise and timesteps are the same for every value. Bands are 95 % intervals "
            "over the images.",
            Panel(f"loss-{name}", partial(plots.draw_loss, table=table, x=name), legend="size, pixels"),
        )


def _growth(results: RunResults) -> Iterator[Shown]:
    """Yield the entropy against the number of tokens."""
    if results.fit is None:
        return
    section = "Entropy against the number of tokens"
    yield Shown(
        section,
        "The mean entropy of each layer, coloured by depth. The dotted line is the maximum for N tokens.",
        Panel("entropy-of-layers", partial(plots.draw_layers_by_depth, fit=results.fit)),
    )
    yield Shown(
        section,
        "The mean over the layers (dots) with 95 % intervals over the prompts, and four forms of H(N). The legend "
        "shows the error of each form at a size left out of its fit. In the Gaussian form, σ² is the measured logit "
        "variance, and only the constant c is fitted.",
        Panel("entropy-law", partial(plots.draw_law, fit=results.fit)),
    )
    yield Shown(
        section,
        "One panel per layer; each dot is the mean of one image. If the logit variance of a layer does not depend on "
        "N, its slope b is 1 and its line is parallel to the dotted maximum.",
        partial(plots.entropy_by_layer, results.fit),
        folded=len(results.fit.layers) - 1 > OPEN_PANELS,
    )


def _factors(results: RunResults) -> Iterator[Shown]:
    """Yield the scale factor of each layer."""
    if results.factors is None or not len(results.factors):
        return
    yield Shown(
        "The scale factor",
        "Scale factor g of each layer at each size, with its 95 % interval over the prompts. Strokes are the "
        "paper's values. An arrow marks a factor at a bound of the search: g may be further out in its direction.",
        Panel(
            "scale-factors",
            partial(plots.draw_factors_by_layer, table=results.factors),
            rows=results.factors["layer"].nunique(),
            row_height=0.1 * results.factors["ratio"].nunique(),
        ),
    )


def _layers(results: RunResults) -> Iterator[Shown]:
    """Yield the entropy over timesteps, layers and heads, and over the image."""
    frame, trained = results.frame, results.sweep.manifest.training_size
    for law in dict.fromkeys(frame["law"]):
        yield Shown(
            "Entropy during sampling",
            f"{law}: each line is one image size; bands are 95 % intervals over the prompts. A law that keeps the "
            "entropy moves every line onto the dashed line, the original model at the training size.",
            Panel(
                f"sampling-{law}",
                partial(plots.draw_timesteps, frame=frame, training_size=trained, law=law),
                legend="size, pixels",
            ),
        )
    original = visual(frame[frame["law"] == "original"])
    sizes = set(zip(original["height"], original["width"], strict=True))
    if trained in sizes:
        rows = original["layer"].nunique()
        hatched = "Hatched: the layer has fewer heads. Layers are in network order, from the input (top) to the output."
        yield Shown(
            "Layers and heads",
            f"Entropy of each head of the original model at the training size. {hatched}",
            Panel("heads", partial(plots.draw_heads, frame=frame, training_size=trained), rows=rows),
        )
        if len(sizes) > 1:
            yield Shown(
                "Layers and heads",
                f"Change of the entropy of each head at the largest size. {hatched}",
                Panel("head-drift", partial(plots.draw_head_drift, frame=frame, training_size=trained), rows=rows),
            )
    if results.entropy_maps:
        yield Shown(
            "Entropy over the image", _map_caption(results), partial(plots.maps_over_images, results.entropy_maps)
        )


def _map_caption(results: RunResults) -> str:
    """Name the image, the layer and the step of the entropy maps, and the mean of the layer over all images."""
    one, grid = results.entropy_maps[0], results.sweep.grid
    frame = results.frame
    frame = frame[(frame["layer"] == one.layer) & (frame["step"] == one.step)]
    means = frame.groupby(["law", "height", "width"])["entropy"].mean()
    shown = [(m.law, *m.size) for m in results.entropy_maps]
    known = [f"{law} at {format_size((h, w))} px {means[law, h, w]:.2f}" for law, h, w in shown if (law, h, w) in means]
    over_all = f" Mean over all prompts and seeds, in nats: {', '.join(known)}." if known else ""
    return (
        f"“{for_html(grid.prompts[0])}”, seed {grid.seeds[0]}, step {one.step + 1} of {results.sweep.manifest.steps}, "
        f"layer {short_name(one.layer)}: entropy of each token, mean over the heads, over a grey copy of the image."
        f"{over_all} A law that keeps the entropy gives the colours of the training size."
    )
