"""The denoising loss against g, calibrated laws, and the figures of both."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe import plots
from entropy_probe.estimation import calibrate
from entropy_probe.evaluation.loss_curves import LossCurve, loss, loss_against_kappa
from entropy_probe.laws import ScalingLaw, from_json
from entropy_probe.models import CaptionedImages, Size, format_size
from research.storage import log, read_table, stored_law, stored_table

SIZES: list[Size] = [(32, 32), (64, 64), (96, 96), (128, 128), (64, 128)]
TRAINING_SIZE: Size = (64, 64)

Tables = dict[str, pd.DataFrame]
"""The tables of a loss curve: `table`, `best` (the g of minimum loss) and `by_timestep`."""

UNET_GROUPS = {
    "fine (16 x 16 latents)": ("down_blocks.0*", "up_blocks.1*"),
    "coarse (8 x 8 latents)": ("down_blocks.1*", "up_blocks.0*"),
    "middle": ("mid_block*",),
}


def layer_groups(pipeline: Any) -> dict[str, tuple[str, ...]]:
    """Return three groups of layers, as globs: by token grid in a UNet, by depth in a transformer."""
    if hasattr(pipeline, "unet"):
        return UNET_GROUPS
    blocks = len(pipeline.transformer.transformer_blocks)
    thirds = np.array_split(np.arange(blocks), 3)
    names = ("early blocks", "middle blocks", "late blocks")
    return {name: tuple(f"transformer_blocks.{b}.*" for b in third) for name, third in zip(names, thirds, strict=True)}


def stored_loss(results: Path, name: str, measure: Callable[[], LossCurve]) -> Tables:
    """Return the tables of a loss curve; measure it at most once, if one of them is missing."""

    @cache
    def curve() -> LossCurve:
        log(f"loss: {name}")
        return measure()

    return {
        "table": stored_table(results / f"{name}.json", lambda: curve().table()),
        "best": stored_table(results / f"{name}-best.json", lambda: curve().best()),
        "by_timestep": stored_table(results / f"{name}-timesteps.json", lambda: curve().table(by_timestep=True)),
    }


def measure_losses(
    pipeline: Any, real_images: CaptionedImages, scale_factors: Sequence[float], results: Path
) -> dict[str, Tables]:
    """Measure the loss against g of all layers, against one kappa, and against g of each layer group."""
    ends = [SIZES[0], SIZES[3]]
    losses = {
        "g": stored_loss(results, "loss-g", lambda: loss(pipeline, real_images, SIZES, scale_factors)),
        "kappa": stored_loss(results, "loss-kappa", lambda: loss_against_kappa(pipeline, real_images, ends)),
    }
    for name, layers in layer_groups(pipeline).items():

        def measure(layers: tuple[str, ...] = layers) -> LossCurve:
            return loss(pipeline, real_images, ends, scale_factors, layers=layers)

        losses[name] = stored_loss(results, f"loss-g-{name.split()[0]}", measure)
    return losses


def calibrated_law(
    pipeline: Any, real_images: CaptionedImages, results: Path, *, per_layer: bool, steps: int, batch: int
) -> tuple[ScalingLaw, pd.DataFrame]:
    """Return the calibrated law, and its change of the loss on held-out images."""
    name = "calibrated" if per_layer else "calibrated-one"
    law_path, changes_path = results / f"{name}.json", results / f"{name}-changes.json"
    if not (law_path.exists() and changes_path.exists()):
        log(name)
        calibration = calibrate(pipeline, real_images, SIZES, per_layer=per_layer, steps=steps, batch=batch)
        points = calibration.points.assign(size=calibration.points["size"].map(format_size))
        stored_table(results / f"{name}-points.json", lambda: points)
        stored_table(changes_path, calibration.table)
        stored_law(law_path, lambda: calibration.law)
    return from_json(law_path.read_text()), read_table(changes_path)


def losses_figure(losses: dict[str, Tables]) -> Figure:
    """Plot the loss against g at every size, and by layer group at the smallest and largest size."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, 3)
    _plot_losses(panels[0, 0], losses["g"]["table"], "g", "all self-attention")
    _plot_losses(panels[0, 1], losses["kappa"]["table"], "kappa", "all, g² = 1 + κ ln(N/T)")
    by_time = losses["g"]["by_timestep"]
    by_time = by_time[by_time["size"] == format_size(SIZES[3])]
    _plot_losses(panels[0, 2], by_time, "g", "128 px, by timestep", "timestep")
    groups = [name for name in losses if name not in ("g", "kappa")]
    for axes, name in zip(panels[1], groups, strict=True):
        _plot_losses(axes, losses[name]["table"], "g", f"only {name}")
    return figure


def _plot_losses(axes: Axes, table: pd.DataFrame, x: str, title: str, hue: str = "size") -> None:
    named = table.assign(**{hue: [f"{value} px" if hue == "size" else f"t = {value}" for value in table[hue]]})
    plots.draw_loss(axes, named, x, hue)
    axes.set(title=title, xlabel=x)
    axes.legend(frameon=False, fontsize=7)


def factors_figure(
    best: pd.DataFrame, highest: float, measured: ScalingLaw, training_tokens: dict[str, int], model: str
) -> Figure:
    """Plot three scale factors against N/T: of minimum loss, of the paper, and of constant entropy.

    Args:
        best: the g of minimum loss by size.
        highest: the largest g at which the loss was measured.
        measured: the law of constant entropy.
        training_tokens: T by layer.
        model: for the title.
    """
    ratios = {format_size(size): size[0] * size[1] / 64**2 for size in SIZES}
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    x, finest = np.geomspace(0.22, 4.6, 50), max(training_tokens.values())
    g = np.array([[measured.scale_factor(layer, round(t * r), t) for r in x] for layer, t in training_tokens.items()])
    colours = sns.color_palette("deep")
    axes.plot(x, np.median(g, 0), color=colours[1], label="constant entropy (`measured`): median and range of layers")
    axes.fill_between(x, g.min(0), g.max(0), color=colours[1], alpha=0.15, linewidth=0)
    axes.plot(x, np.sqrt(np.log(x * finest) / np.log(finest)), "--", color="0.35", label="the paper's law")
    at = best["size"].map(ratios)
    errors = np.stack([best["minimum"] - best["low"], best["high"] - best["minimum"]]).clip(0)
    axes.errorbar(at, best["minimum"], yerr=errors, fmt="o", color=colours[0], capsize=3, label="minimum loss, 95 %")
    end = best["minimum"] >= highest
    if end.any():
        label = "minimum loss, at the largest g that was tried"
        axes.plot(at[end], best["minimum"][end], "^", color=colours[0], markersize=11, label=label)
    axes.axhline(1, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xscale="log", title=f"{model}: which scale factor does a size need?")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="tokens relative to training, N/T", ylabel="scale factor g of the self-attention logits")
    axes.set_xticks([0.25, 1, 2.25, 4], ["1/4", "1", "2.25", "4"])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    return figure
