"""The figures of the report: plain data in, a matplotlib figure out."""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from PIL import Image

from entropy_probe.attention import Captured, visual
from entropy_probe.estimation import POOLED, Fit
from entropy_probe.estimation.regression import FORMS
from entropy_probe.evaluation import Outcome, Quality
from entropy_probe.laws import Measured, Paper, ScalingLaw, factors
from entropy_probe.models import Size, format_size, short_name
from entropy_probe.plots.marks import Mark, description, marks
from entropy_probe.plots.tables import quality_against_kappa, titled
from entropy_probe.runs import Sweep
from entropy_probe.runs.entropy_maps import EntropyMap

PALETTE = "colorblind"

LAYERS_NAMED = 16
"""Lines up to which a legend names each layer."""

GRID_PIXELS = 400_000
"""Pixels that one image grid may embed; larger images are shrunk, or a page of 1024 px images would weigh 100 MB."""

HEAVY = 20_000
"""Bytes of an embedded image beyond which it is tried as JPEG."""

INTERVAL = 1.96
"""Standard errors on either side of a mean, for 95 %."""


CLEAR: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.framealpha": 0,
    "grid.color": "0.5",
    "grid.alpha": 0.3,
    "axes.edgecolor": "0.5",
    "patch.edgecolor": "none",
}
"""The look of a figure that stands on whatever ground its page has, light or dark."""

INK = ("#262626", "#000000")
"""The colours of text and of black marks in `theme`, which become the colour of the page's own text."""


def shades(count: int) -> list[tuple[float, float, float]]:
    """Colours from first to last, none of which is lost on a white ground or on a dark one."""
    return [mpl.colormaps["viridis"](place)[:3] for place in np.linspace(0.32, 0.88, count)]


@contextmanager
def theme() -> Iterator[None]:
    """The look of every figure, for as long as the context is open; the SVG is the same for the same data."""
    style = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.85)}
    # Names of foreign layers are shown as they are: a dollar sign begins no formula.
    with mpl.rc_context({**style, "svg.hashsalt": "entropy-probe", "svg.fonttype": "none", "text.parse_math": False}):
        yield


@contextmanager
def page_theme() -> Iterator[None]:
    """`theme` for the figures of a page, which stand on its ground."""
    with theme(), mpl.rc_context(CLEAR):
        yield


def entropy_over_layers(fit: Fit) -> Figure:
    """Left, every layer's mean entropy against ln N, coloured by depth; right, their mean and the rival forms."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _layers_by_depth(figure, left, fit)
    draw_law(right, fit)
    right.set_title("all layers together", fontsize=9)
    right.legend(fontsize=7.5, edgecolor="none")
    return figure


def _layers_by_depth(figure: Figure, axes: Axes, fit: Fit) -> None:
    names = [law.layer for law in fit.layers[:-1]]
    colours = mpl.colors.ListedColormap(shades(256))
    scale = mpl.colors.Normalize(1, max(2, len(names)))
    means = fit.points.groupby(["layer", "tokens"], sort=True)["entropy"].mean()
    for number, name in enumerate(names, 1):
        own = means.loc[name]
        x = np.log(own.index.to_numpy(float))
        axes.plot(
            x, own, color=colours(scale(number)), marker="o", markersize=3.5, linewidth=1, label=f"_{short_name(name)}"
        )
    ends = np.log([fit.points["tokens"].min(), fit.points["tokens"].max()])
    axes.plot(ends, ends, color="0.5", linestyle=":", label="bound, H = ln N")
    axes.set_xlabel("ln N  (N tokens of the layer)")
    axes.set_ylabel("mean entropy, nats")
    axes.set_title("every layer", fontsize=9)
    axes.legend(loc="upper left", edgecolor="none")
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, colours), ax=axes, label="layer, in network order")
    bar.ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
    bar.ax.invert_yaxis()


def draw_law(axes: Axes, fit: Fit) -> None:
    """Means over the layers at each size; every form is fitted to each layer, then averaged like the data."""
    points = fit.points.assign(x=np.log(fit.points["tokens"]))
    points["gaussian"] = (points["x"] - points["logit_variance"] / 2).clip(lower=0)
    by_prompt = points.groupby(["height", "width", "prompt"])[["x", "entropy", "gaussian"]].mean()
    by_size = by_prompt.groupby(["height", "width"])
    means = by_size.mean().assign(error=by_size["entropy"].sem().fillna(0.0)).sort_values("x")
    fine = np.linspace(means["x"].min(), means["x"].max(), 60)
    middle_x, middle_y = float(points["x"].mean()), float(points["entropy"].mean())
    errors = fit.rivals[fit.rivals["layer"] == POOLED].set_index("form")["error"]
    colours = sns.color_palette(PALETTE)

    def label(form: str, formula: str) -> str:
        return formula + ("" if math.isnan(errors[form]) else f"  (off by {errors[form]:.2f} nats)")

    law = fit.pooled
    if not math.isnan(law.slope_low):
        fan = [middle_y + slope * (fine - middle_x) for slope in (law.slope_low, law.slope_high)]
        axes.fill_between(fine, np.minimum(*fan), np.maximum(*fan), color=colours[3], alpha=0.2, linewidth=0)
    line = law.intercept + law.slope * fine
    axes.plot(fine, line, color=colours[3], label=label("log", f"a + b ln N, b = {law.slope:.3f}"))
    styles = {"power": (colours[0], "--", "c N^p"), "linear": (colours[2], "-.", "a + b N")}
    for form, (colour, style, formula) in styles.items():
        predicted = []
        for _, own in points.groupby("layer", sort=False):
            places = own.groupby(["height", "width"])["x"].first().reindex(means.index)
            tokens = np.exp(np.interp(fine, means["x"], places))
            n, h = (own[column].to_numpy(float) for column in ("tokens", "entropy"))
            predicted.append(FORMS[form](n, h, tokens))
        axes.plot(fine, np.mean(predicted, axis=0), color=colour, linestyle=style, label=label(form, formula))
    gaussian = label("gaussian", "ln N − σ²/2")
    axes.plot(means["x"], means["gaussian"], color=colours[4], linestyle=":", marker="s", markersize=4, label=gaussian)
    bars: dict[str, Any] = {"fmt": "o", "color": "black", "markersize": 5, "capsize": 3}
    axes.errorbar(means["x"], means["entropy"], yerr=INTERVAL * means["error"], label="measured", zorder=4, **bars)
    axes.set_xlabel("ln N, mean over the layers")
    axes.set_ylabel("mean entropy over the layers, nats")


def entropy_against_tokens(fit: Fit) -> Figure:
    """A panel per layer: mean entropy of every image against ln N, the fitted line, and the bound H = ln N."""
    layers = fit.layers[:-1]
    columns = min(5, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(2.5 * columns, 2.3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=False)
    colours = sns.color_palette(PALETTE)
    for axes, law in zip(grid.flat, layers, strict=False):
        points = fit.points[fit.points["layer"] == law.layer]
        x = np.log(points["tokens"].to_numpy(float))
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, ends, color="0.6", linestyle=":", label="bound, H = ln N")
        axes.plot(ends, law.intercept + law.slope * ends, color=colours[3], label="H = a + b ln N")
        axes.scatter(x, points["entropy"], s=9, alpha=0.75, color=colours[9], label="an image", linewidths=0)
        error = "" if math.isnan(law.slope_se) else f" ± {law.slope_se:.3f}"
        axes.set_title(f"{short_name(law.layer)}\nb = {law.slope:.3f}{error}", fontsize=8)
    for axes in grid.flat[len(layers) :]:
        axes.axis("off")
    figure.supxlabel("ln N  (tokens of the layer)")
    figure.supylabel("entropy, nats")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def entropy_against_timestep(frame: pd.DataFrame, training_size: Size) -> Figure:
    """A panel per law: mean entropy over the visual layers against the timestep, a line and a band per size."""
    laws = list(dict.fromkeys(frame["law"]))
    columns = min(3, len(laws))
    rows = math.ceil(len(laws) / columns)
    figure = Figure(figsize=(max(5.5, 3.3 * columns), 3.3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    sizes = _sizes(frame)
    for axes, law in zip(grid.flat, laws, strict=False):
        draw_timesteps(axes, frame, training_size, law)
        axes.set_title(law)
        axes.set_ylabel("")
    for axes in grid.flat[len(laws) :]:
        axes.axis("off")
    for axes in grid[:, 0]:
        axes.set_ylabel("entropy, nats (mean over layers)")
    shown = dict(pair[::-1] for axes in grid.flat for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    order = [name for name in (*map(format_size, sizes), "aim: original, trained size") if name in shown]
    handles = [shown[name] for name in order]
    figure.legend(handles, order, loc="outside upper center", ncols=6, frameon=False, title="size, pixels")
    return figure


def draw_timesteps(axes: Axes, frame: pd.DataFrame, training_size: Size, law: str) -> None:
    """Mean entropy over the visual layers against the timestep under one law, a line and a band per size."""
    keys = ["law", "height", "width", "prompt", "timestep"]
    # A layer counts once, however many heads it has.
    by_layer = visual(frame).groupby([*keys, "layer"], sort=False)["entropy"].mean()
    means = by_layer.groupby(keys, sort=False).mean().reset_index()
    sizes = _sizes(frame)
    colours = dict(zip(sizes, shades(len(sizes)), strict=True))
    for size in sizes:
        own = _of_size(means[means["law"] == law], size)
        if own.empty:
            continue
        by_step = own.groupby("timestep")["entropy"]
        middle, error = by_step.mean(), by_step.sem().fillna(0.0)
        x = middle.index.to_numpy(float)
        axes.plot(x, middle, color=colours[size], label=format_size(size), linewidth=1.5)
        band = (middle - INTERVAL * error, middle + INTERVAL * error)
        axes.fill_between(x, *band, color=colours[size], alpha=0.2, linewidth=0)
    trained = _of_size(means[means["law"] == "original"], training_size)
    if not trained.empty:
        aim = trained.groupby("timestep")["entropy"].mean()
        axes.plot(aim.index, aim, color="black", linestyle="--", linewidth=1, label="aim: original, trained size")
    axes.invert_xaxis()
    axes.set_xlabel("timestep (noise to image)")
    axes.set_ylabel("entropy, nats (mean over layers)")


def draw_layers(axes: Axes, captured: Captured) -> None:
    """Entropy of every layer from the input (top) to the output: a dot per head, their mean, and the bound ln N."""
    frame = captured.frame()
    frame = frame[frame["scale_factor"] == 1.0]
    order = {layer: place for place, layer in enumerate(dict.fromkeys(frame["layer"]))}
    heads = frame.groupby(["layer", "kind", "head"], sort=False)["entropy"].mean().reset_index()
    for colour, (kind, own) in zip(sns.color_palette(PALETTE), heads.groupby("kind", sort=False), strict=False):
        axes.scatter(own["entropy"], own["layer"].map(order), s=14, alpha=0.6, color=colour, label=f"a head ({kind})")
    table = captured.summary()
    places = table["layer"].map(order)
    bars = INTERVAL * table["entropy_se"].fillna(0.0)
    axes.errorbar(table["entropy"], places, xerr=bars, fmt="D", color="black", markersize=4, label="mean of the layer")
    most = np.log(frame.groupby("layer", sort=False)["key_tokens"].max())
    axes.plot(most, most.index.map(order), "|", color="0.5", markersize=9, label="bound, ln N")
    axes.set_yticks(list(order.values()), [short_name(name) for name in order], fontsize=row(len(order))[1])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlabel("entropy, nats")


def draw_factors(axes: Axes, law: ScalingLaw) -> None:
    """g against N/T, a line per layer that the law names, coloured by depth, beside the paper's."""
    ratios = np.geomspace(0.25, 9, 61)
    lines = factors(law, ratios.tolist()).set_index("ratio").groupby("layer", sort=False)["scale_factor"]
    for colour, (name, line) in zip(shades(len(lines)), lines, strict=True):
        label = law.name if name == "*" else short_name(str(name))
        unnamed = len(lines) > LAYERS_NAMED
        axes.plot(line.index, line, color=colour, linewidth=1.5, label=None if unnamed else label)
    paper = factors(Paper(), ratios.tolist())
    axes.plot(ratios, paper["scale_factor"], color="black", linestyle="--", linewidth=1, label="paper, at T = 1024")
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("N/T, tokens now over tokens in training")
    axes.set_ylabel("g, what the logits are multiplied by")


def layers_and_heads(frame: pd.DataFrame, training_size: Size) -> Figure:
    """Heat maps layer x head: entropy at the training size, and its drift at the largest size, original model."""
    original = visual(frame[frame["law"] == "original"])
    table = original.groupby(["height", "width", "layer", "head"], sort=False)["entropy"].mean()
    trained = table.loc[training_size].unstack("head").sort_index(axis=1)
    trained = trained.loc[list(dict.fromkeys(original["layer"]))]
    others = [size for size in _sizes(original) if size != training_size]
    height, font = row(len(trained))
    figure = Figure(figsize=(9 if others else 5.5, height * len(trained) + 1.6), layout="constrained")
    panels = figure.subplots(1, 2 if others else 1, sharey=True, squeeze=False)[0]
    labels = {
        "xticklabels": True if trained.shape[1] <= 12 else 5,
        "yticklabels": [short_name(str(name)) for name in trained.index],
        "linewidths": 0.4,
        "linecolor": "0.5",
    }
    sns.heatmap(trained, ax=panels[0], cmap="viridis", cbar_kws={"label": "entropy, nats"}, **labels)
    panels[0].set_title(f"entropy at the training size, {format_size(training_size)}", fontsize=9)
    if others:
        drift = table.loc[others[-1]].unstack("head").reindex_like(trained) - trained
        limit = float(np.nanmax(np.abs(drift.to_numpy())))
        bar = {"label": "H(N) − H(T), nats"}
        sns.heatmap(drift, ax=panels[1], cmap="vlag", vmin=-limit, vmax=limit, cbar_kws=bar, **labels)
        panels[1].set_title(f"its drift at {format_size(others[-1])}", fontsize=9)
    for axes in panels:
        axes.grid(visible=False)  # else it shows where a layer has fewer heads
        axes.set_ylabel("")
        axes.set_xlabel("head")
        axes.tick_params(axis="y", labelrotation=0, labelsize=font)
        axes.tick_params(axis="x", labelrotation=0)
    return figure


def entropy_maps(maps: Sequence[EntropyMap]) -> Figure:
    """Generated images, and the entropy of each token's row laid over a grey copy of them, on one colour scale."""
    widths = [one.size[1] / one.size[0] for one in maps]
    figure = Figure(figsize=(2.6 * sum(widths) + 0.8, 5.6), layout="constrained")
    grid = figure.subplots(2, len(maps), squeeze=False, width_ratios=widths)
    low = min(float(m.values.min()) for m in maps)
    high = max(float(m.values.max()) for m in maps)
    for column, one in enumerate(maps):
        height, width = one.size
        extent = (0, width, height, 0)
        image = _shrunk(one.image, GRID_PIXELS / len(maps))
        grid[0, column].imshow(image, extent=extent, interpolation="none")
        grid[0, column].set_title(f"{one.law}, {format_size(one.size)}", fontsize=9)
        shown = draw_map(grid[1, column], image, one.values, one.size, low, high)
        grid[1, column].set_title(f"mean {float(np.mean(one.values)):.2f} nats", fontsize=9)
        _frame_only(grid[0, column])
    figure.colorbar(shown, ax=grid[1, :].tolist(), label="entropy, nats", shrink=0.85, pad=0.02)
    return figure


def draw_map(
    axes: Axes,
    image: Image.Image,
    values: Float[np.ndarray, "grid_height grid_width"],
    size: Size,
    low: float | None = None,
    high: float | None = None,
) -> AxesImage:
    """A value of every token, laid over a grey copy of the image; the colours go from `low` to `high`."""
    extent = (0, size[1], size[0], 0)
    # A pale grey copy: colours of the image would be taken for values.
    grey = 0.4 + 0.6 * np.asarray(image.convert("L"), dtype=float) / 255
    axes.imshow(grey, extent=extent, cmap="gray", vmin=0, vmax=1, interpolation="none")
    _frame_only(axes)
    return axes.imshow(values, extent=extent, cmap="viridis", alpha=0.7, vmin=low, vmax=high, interpolation="none")


def kappa_by_layer(kappa: pd.DataFrame, law: ScalingLaw | None = None) -> Figure:
    """kappa of every layer with its 95 % interval, in network order, and the paper's 1/ln T beside it.

    Of a measured law also the kappa that each size asks for by itself: one number may be too few for a layer.
    """
    names = [short_name(name) for name in kappa["layer"]]
    height, font = row(len(names))
    figure = Figure(figsize=(8, height * len(names) + 1.4), layout="constrained")
    axes = figure.subplots()
    y = np.arange(len(names))
    colours = sns.color_palette(PALETTE)
    bars = np.nan_to_num(np.clip([kappa["kappa"] - kappa["low"], kappa["high"] - kappa["kappa"]], 0, None))
    axes.axvline(0, color="0.5", linewidth=0.8)
    if isinstance(law, Measured):
        own = [(x, g, at) for at, name in enumerate(kappa["layer"]) for x, g in law.points.get(name, ()) if x]
        x, g, at = np.array(own, dtype=float).reshape(-1, 3).T
        shades = axes.scatter((g**2 - 1) / x, at, c=x, cmap="vlag", s=26, edgecolors="0.35", linewidths=0.6, zorder=3)
        figure.colorbar(shades, ax=axes, label="one size by itself: its ln(N/T)", shrink=0.6)
        limit = np.abs(x).max(initial=0.1)
        shades.set_clim(-limit, limit)
    axes.errorbar(kappa["kappa"], y, xerr=bars, fmt="o", color="black", capsize=3, label="all sizes, 95 % interval")
    axes.plot(kappa["paper"], y, "D", color=colours[3], markersize=5, label="paper, 1/ln T")
    axes.set_yticks(y, names, fontsize=font)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("κ in g² = 1 + κ ln(N/T); κ = 0 leaves the layer alone")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def drift_by_law(outcome: Outcome, level: str = "layer") -> Figure:
    """Drift that each law leaves at each size, nats, and the fraction of the original drift that is gone."""
    table = outcome.table(level)
    sizes, laws = list(dict.fromkeys(table["size"])), list(dict.fromkeys(table["law"]))
    others = [law for law in laws if law != "original"]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = dict(zip(laws, sns.color_palette(PALETTE, len(laws)), strict=True))
    draw_drift(left, outcome, level)
    for law in others:
        own = table[table["law"] == law].set_index("size").reindex(sizes)
        removed = 100 * own[["removed", "removed_low", "removed_high"]]
        _bars(right, others.index(law), len(others), removed, colours[law])
    right.set_ylabel("drift removed, % of original")
    right.axhline(0, color="0.3", linewidth=0.8)
    right.axhline(100, color="0.3", linewidth=0.8, linestyle=":")
    _size_ticks(right, sizes)
    figure.legend(loc="outside upper center", ncols=len(laws), frameon=False)
    return figure


def draw_drift(axes: Axes, outcome: Outcome, level: str = "layer") -> None:
    """Drift that each law leaves at each size, nats, with 95 % intervals."""
    table = outcome.table(level)
    sizes, laws = list(dict.fromkeys(table["size"])), list(dict.fromkeys(table["law"]))
    for number, (law, colour) in enumerate(zip(laws, sns.color_palette(PALETTE, len(laws)), strict=True)):
        own = table[table["law"] == law].set_index("size").reindex(sizes)
        _bars(axes, number, len(laws), own[["drift", "low", "high"]], colour, law)
    axes.set_ylabel("drift |H(N) − H(T)|, nats")
    _size_ticks(axes, sizes)


def quality_by_law(quality: Quality, metrics: Sequence[str] | None = None) -> Figure:
    """Metrics (all, if none are named) against the size: a line for each law with its 95 % interval.

    At the training size every law leaves the model as it is, and all lines meet.
    """
    table, before = quality.table(), quality.original.assign(name=quality.original["size"].map(format_size))
    laws = list(dict.fromkeys(table["law"]))
    sizes = sorted(dict.fromkeys(quality.original["size"]), key=lambda s: s[0] * s[1])
    names = [format_size(size) for size in sizes]
    colours = dict(zip(["original", *laws], sns.color_palette(PALETTE, len(laws) + 1), strict=True))
    figure, panels = _metric_panels(quality, metrics)
    for metric, axes in panels.items():
        originals = before[before["metric"] == metric].set_index("name")["value"].reindex(names)
        axes.plot(range(len(sizes)), originals, "o--", color=colours["original"], label="original")
        for number, law in enumerate(laws, 1):
            own = table[(table["law"] == law) & (table["metric"] == metric)].set_index("size").reindex(names)
            low, high = own["difference"] - own["low"], own["high"] - own["difference"]
            bars = np.nan_to_num(np.stack([low, high]).clip(0))
            x = np.arange(len(sizes)) + 0.08 * number
            values = own["value"].fillna(originals)
            style: dict[str, Any] = {"fmt": "o-", "linewidth": 1, "elinewidth": 1.5, "markersize": 4}
            axes.errorbar(x, values, yerr=bars, color=colours[law], label=law, **style)
        axes.set_xticks(range(len(sizes)), names)
        axes.set_xlabel("size, pixels")
    _legend_of_all(figure)
    return figure


def quality_by_kappa(quality: Quality, kappas: pd.DataFrame, metrics: Sequence[str] | None = None) -> Figure:
    """Metrics against kappa, a line for each size through the laws, which differ in kappa.

    Args:
        quality: of the images.
        kappas: `law`, `size` (as `format_size` writes it), `kappa`.
        metrics: all, if none are named.
    """
    table = quality_against_kappa(quality, kappas)
    sizes, laws = list(dict.fromkeys(table["size"])), list(dict.fromkeys(table["law"]))
    shapes = dict(zip(laws, itertools.cycle("osD^vPX*"), strict=False))
    figure, panels = _metric_panels(quality, metrics)
    for metric, axes in panels.items():
        for size, colour in zip(sizes, shades(len(sizes)), strict=True):
            own = table[(table["size"] == size) & (table["metric"] == metric)].sort_values("kappa")
            ends = np.stack([own["value"] - own["low"], own["high"] - own["value"]])
            bars = np.nan_to_num(ends.clip(0))
            axes.errorbar(own["kappa"], own["value"], yerr=bars, fmt="-", color=colour, linewidth=1, label=size)
            for row in own.itertuples():
                style: dict[str, Any] = {"color": colour, "linestyle": "none", "markersize": 5}
                axes.plot(row.kappa, row.value, marker=shapes[row.law], label=f"_{row.law}, {size}", **style)
        axes.set_xlabel("κ, mean over the layers")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    handles += [Line2D([], [], color="0.5", marker=shapes[law], linestyle="none", markersize=5) for law in laws]
    columns = min(8, len(handles))
    figure.legend(handles, labels + laws, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def losses(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Change of the denoising loss against g, kappa or both, a line and a 95 % band for each size."""
    figure = Figure(figsize=(max(6.0, 4.6 * len(tables)), 3.8), layout="constrained")
    for axes, (name, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        draw_loss(axes, table, name)
        axes.set_xlabel({"kappa": "κ in g² = 1 + κ ln(N/T)"}.get(name, f"{name}, what the logits are multiplied by"))
    _legend_of_all(figure, "size, pixels")
    return figure


def draw_loss(axes: Axes, table: pd.DataFrame, x: str, hue: str = "size") -> None:
    """Change of the loss in percent against the column `x`, a line and a 95 % band for each value of `hue`."""
    values = list(dict.fromkeys(table[hue]))
    for value, colour in zip(values, shades(len(values)), strict=True):
        own = table[table[hue] == value].sort_values(x)
        axes.plot(own[x], 100 * own["change"], "o-", color=colour, label=str(value), markersize=3)
        axes.fill_between(own[x], 100 * own["low"], 100 * own["high"], color=colour, alpha=0.25, linewidth=0)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_ylim(min(-4.0, 100 * table["low"].min() - 1), 8)  # the far ends would press the minima flat
    axes.set_ylabel("change of the loss, %")


def _metric_panels(quality: Quality, metrics: Sequence[str] | None) -> tuple[Figure, dict[str, Axes]]:
    """A panel per metric that was measured."""
    measured = dict.fromkeys(c.metric for c in quality.comparisons)
    shown = [metric for metric in metrics or measured if metric in measured]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(5.5, 3.3 * columns), 2.9 * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for metric, axes in zip(shown, panels, strict=False):
        axes.set_title(titled(metric).replace(" (", "\n("), fontsize=9)  # networks have long names
    return figure, dict(zip(shown, panels, strict=False))


def _legend_of_all(figure: Figure, title: str | None = None) -> None:
    """One legend above for panels that show the same lines."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), frameon=False, title=title)


def image_grid(sweep: Sweep, prompt: str, pixels: float = GRID_PIXELS) -> Figure:
    """One prompt and seed: rows are laws, columns sizes, images at their true relative sizes.

    Args:
        sweep: the sampled grid.
        prompt: one of its prompts.
        pixels: how many the figure may hold; larger images are shrunk.
    """
    sizes = sorted(sweep.grid.sizes, key=lambda s: s[0] * s[1])
    laws = [law.name for law in sweep.grid.laws]
    widest, highest = sum(w for _, w in sizes), max(h for h, _ in sizes)
    share = pixels / (len(laws) * sum(h * w for h, w in sizes))
    unit = min(8.0 / widest, 2.6 / highest)
    figure = Figure(figsize=(unit * widest + 0.9, len(laws) * (unit * highest + 0.15) + 0.3), layout="constrained")
    grid = figure.subplots(len(laws), len(sizes), squeeze=False, width_ratios=[w for _, w in sizes])
    for row, law in enumerate(laws):
        for column, (height, width) in enumerate(sizes):
            axes = grid[row, column]
            image = sweep.image(prompt, (height, width), sweep.grid.seeds[0], law)
            image = _shrunk(image, share * height * width)
            axes.imshow(image, extent=(0, width, height, 0), interpolation="none")
            axes.plot([0, width, width, 0, 0], [0, 0, height, height, 0], color="0.75", linewidth=0.8, clip_on=False)
            axes.set_xlim(0, width)
            axes.set_ylim(height, height - highest)  # all stand on one line
            _frame_only(axes)
            sns.despine(ax=axes, left=True, bottom=True)
            if row == 0:
                axes.text(width / 2, -0.02 * highest, format_size((height, width)), ha="center", fontsize=9)
        grid[row, 0].set_ylabel(law, fontsize=9)
    return figure


def inline_svg(figure: Figure, prefix: str, title: str, shown: Sequence[Mark] | None = None) -> str:
    """A figure as inline SVG: ids of its own, so that several stand on one page, its numbers under the pointer, its
    description for those who do not see it, and the colour of the text around it for what is black.

    `shown` are its marks, if they are at hand.
    """
    shown = marks(figure) if shown is None else shown
    box = figure.get_tightbbox().padded(0.1)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches=box)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Nothing refers to the ids of images, which are the same for the same image: under every law at the trained size.
    text = re.sub(r'(<image\b[^>]*?)\sid="[^"]*"', r"\1", text)
    text = re.sub(r"data:image/png;base64,([^\"]*)", lambda found: _lighter(found[1]), text)
    # Numbered as they appear: some of matplotlib's own ids come from addresses in memory and differ from run to run.
    numbers: dict[str, int] = {}
    text = re.sub(
        r'(\sid="|url\(#|href="#)([^")]+)',
        lambda found: f"{found[1]}{prefix}{numbers.setdefault(found[2], len(numbers))}",
        text,
    )
    # A style sheet inside an inline SVG is one for the whole page around it; the same is said on the root.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    for colour in INK:
        text = text.replace(colour, "currentColor")
    label = html.escape(f"{title} {description(shown)}".strip())
    # Black is SVG's own default for a fill and not written down.
    root = f'<svg role="img" aria-label="{label}" fill="currentColor" stroke-linejoin="round" stroke-linecap="butt" '
    hover = "".join(_under_the_pointer(mark, box) for mark in shown)
    text = text.replace("<svg ", root, 1)
    return text.replace("</svg>", f'<g class="marks" fill="none" pointer-events="all">{hover}</g></svg>')


def _under_the_pointer(mark: Mark, page: Bbox) -> str:
    """An invisible rectangle over a mark that says its number."""
    x, y = 72 * (mark.box.xmin - page.xmin), 72 * (page.ymax - mark.box.ymax)
    width, height = 72 * (mark.box.xmax - mark.box.xmin), 72 * (mark.box.ymax - mark.box.ymin)
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size}><title>{html.escape(mark.text())}</title></rect>'


def _lighter(png: str) -> str:
    """An embedded image as a data URL: a heavy one as JPEG, if it is opaque and becomes smaller."""
    content = base64.b64decode(png)
    as_it_was = f"data:image/png;base64,{png}"
    if len(content) < HEAVY:
        return as_it_was
    image = Image.open(io.BytesIO(content))
    if image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255:
        return as_it_was
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "jpeg", quality=85)
    if buffer.tell() >= len(content):
        return as_it_was
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shrunk(image: Image.Image, pixels: float) -> Image.Image:
    """The image, scaled down to at most so many pixels."""
    factor = math.sqrt(pixels / (image.width * image.height))
    if factor >= 1:
        return image
    return image.resize((max(1, int(factor * image.width)), max(1, int(factor * image.height))), Image.Resampling.BOX)


def _frame_only(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


def row(count: int) -> tuple[float, float]:
    """Height (inches) and label size (points) of a row: a big model has 70 layers."""
    return (0.27, 7.5) if count <= 30 else (0.16, 6.0)


def _size_ticks(axes: Axes, sizes: Sequence[str]) -> None:
    axes.set_xticks(np.arange(len(sizes)), sizes)
    axes.set_xlabel("size, pixels")
    axes.grid(visible=False, axis="x")


def _bars(axes: Axes, number: int, count: int, table: pd.DataFrame, colour: Any, label: str | None = None) -> None:
    """Bars of one of `count` laws, side by side at each size; the columns are the value and its interval."""
    width = 0.8 / count
    x = np.arange(len(table)) + width * (number - (count - 1) / 2)
    middle, low, high = (table[name] for name in table)
    axes.bar(x, middle, width, color=colour, label=label)
    # Not yerr: the bootstrap of an absolute value may lie wholly above its estimate, and must then be drawn there.
    axes.vlines(x, low, high, color="0.15", linewidth=1.2)
    for end in (low, high):
        axes.hlines(end, x - width / 6, x + width / 6, color="0.15", linewidth=1.2)


def _of_size(frame: pd.DataFrame, size: Size) -> pd.DataFrame:
    return frame[(frame["height"] == size[0]) & (frame["width"] == size[1])]


def _sizes(frame: pd.DataFrame) -> list[Size]:
    pairs = frame[["height", "width"]].drop_duplicates().itertuples(index=False)
    return sorted(((int(h), int(w)) for h, w in pairs), key=lambda s: s[0] * s[1])
