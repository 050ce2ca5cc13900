"""The figures of the report: plain data in, a matplotlib figure out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.fitting import Fit
from entropy_probe.pipelines import Size, format_size, short_name
from entropy_probe.report.maps import EntropyMap
from entropy_probe.sweep import Sweep
from entropy_probe.validation import Outcome

PALETTE = "colorblind"


@contextmanager
def theme() -> Iterator[None]:
    """The look of every figure, for as long as the context is open; the SVG is the same for the same data."""
    style = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.85)}
    with mpl.rc_context({**style, "svg.hashsalt": "entropy-probe", "svg.fonttype": "none"}):
        yield


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
        axes.scatter(x, points["entropy"], s=8, alpha=0.5, color=colours[0], label="an image", linewidths=0)
        error = "" if math.isnan(law.slope_se) else f" ± {law.slope_se:.3f}"
        axes.set_title(f"{short_name(law.layer)}\nb = {law.slope:.3f}{error}", fontsize=8)
    for axes in grid.flat[len(layers) :]:
        axes.axis("off")
    figure.supxlabel("ln N  (tokens of the layer)")
    figure.supylabel("entropy, nats")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    return figure


def entropy_against_timestep(frame: pd.DataFrame, training_size: Size) -> Figure:
    """A panel per law: mean entropy over the visual layers against the timestep, a line and a band per size."""
    visual = frame[frame["kind"] != "cross"]
    keys = ["law", "height", "width", "prompt", "timestep"]
    means = visual.groupby(keys, sort=False)["entropy"].mean().reset_index()
    laws = list(dict.fromkeys(means["law"]))
    figure = Figure(figsize=(4.2 * len(laws), 3.6), layout="constrained")
    grid = figure.subplots(1, len(laws), squeeze=False, sharey=True)
    sizes = _sizes(means)
    colours = dict(zip(sizes, sns.color_palette("viridis", len(sizes)), strict=True))
    trained = means[
        (means["law"] == "original") & (means["height"] == training_size[0]) & (means["width"] == training_size[1])
    ]
    for axes, law in zip(grid.flat, laws, strict=True):
        for size in sizes:
            own = means[(means["law"] == law) & (means["height"] == size[0]) & (means["width"] == size[1])]
            if own.empty:
                continue
            by_step = own.groupby("timestep")["entropy"]
            middle, error = by_step.mean(), by_step.sem().fillna(0.0)
            x = middle.index.to_numpy(float)
            axes.plot(x, middle, color=colours[size], label=format_size(size), linewidth=1.5)
            band = (middle - 1.96 * error, middle + 1.96 * error)
            axes.fill_between(x, *band, color=colours[size], alpha=0.2, linewidth=0)
        reference = trained.groupby("timestep")["entropy"].mean()
        axes.plot(reference.index, reference, color="black", linestyle="--", linewidth=1, label="trained, original")
        axes.invert_xaxis()
        axes.set_title(law)
        axes.set_xlabel("timestep (noise to image)")
    grid.flat[0].set_ylabel("entropy, nats (mean over layers)")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, title="size, pixels")
    return figure


def layers_and_heads(frame: pd.DataFrame, training_size: Size) -> Figure:
    """Heat maps layer x head: entropy at the training size, and its drift at the largest size, original model."""
    visual = frame[(frame["kind"] != "cross") & (frame["law"] == "original")]
    table = visual.groupby(["height", "width", "layer", "head"], sort=False)["entropy"].mean()
    sizes = _sizes(visual)
    trained = table.loc[training_size].unstack("head")
    names = [short_name(str(name)) for name in trained.index]
    others = [size for size in sizes if size != training_size]
    figure = Figure(figsize=(9, 0.27 * len(names) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    labels = {"xticklabels": True, "yticklabels": names}
    sns.heatmap(trained, ax=left, cmap="viridis", cbar_kws={"label": "entropy, nats"}, **labels)
    left.set_title(f"at the training size, {format_size(training_size)}")
    if others:
        drift = table.loc[others[-1]].unstack("head").loc[trained.index] - trained
        limit = float(np.nanmax(np.abs(drift.to_numpy())))
        bar = {"label": "H(N) − H(T), nats"}
        sns.heatmap(drift, ax=right, cmap="vlag", vmin=-limit, vmax=limit, cbar_kws=bar, **labels)
        right.set_title(f"drift at {format_size(others[-1])}")
    for axes in (left, right):
        axes.set_ylabel("")
        axes.set_xlabel("head")
        axes.tick_params(axis="y", labelrotation=0, labelsize=7)
    return figure


def entropy_maps(maps: Sequence[EntropyMap]) -> Figure:
    """Generated images, and the entropy of each token's row laid over them."""
    figure = Figure(figsize=(2.3 * len(maps), 4.6), layout="constrained")
    grid = figure.subplots(2, len(maps), squeeze=False)
    low = min(float(m.values.min()) for m in maps)
    high = max(float(m.values.max()) for m in maps)
    for column, one in enumerate(maps):
        height, width = one.size
        extent = (0, width, height, 0)
        grid[0, column].imshow(one.image, extent=extent, interpolation="nearest")
        grid[0, column].set_title(f"{one.law}, {format_size(one.size)}", fontsize=9)
        grid[1, column].imshow(one.image, extent=extent, interpolation="nearest")
        shown = grid[1, column].imshow(
            one.values, extent=extent, cmap="magma", alpha=0.7, vmin=low, vmax=high, interpolation="nearest"
        )
        for axes in grid[:, column]:
            axes.axis("off")
    figure.colorbar(shown, ax=grid[1, :].tolist(), label="entropy, nats", shrink=0.8)
    return figure


def kappa_by_layer(kappa: pd.DataFrame) -> Figure:
    """kappa of every layer with its 95 % interval, in network order, and the paper's 1/ln T beside it."""
    names = [short_name(name) for name in kappa["layer"]]
    figure = Figure(figsize=(8, 0.27 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    y = np.arange(len(names))
    colours = sns.color_palette(PALETTE)
    errors = np.abs(np.stack([kappa["kappa"] - kappa["low"], kappa["high"] - kappa["kappa"]]))
    axes.errorbar(kappa["kappa"], y, xerr=np.nan_to_num(errors), fmt="o", color=colours[0], capsize=3, label="measured")
    axes.plot(kappa["paper"], y, color=colours[3], marker="|", markersize=10, linestyle="-", label="paper, 1/ln T")
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_yticks(y, names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("κ in g² = 1 + κ ln(N/T)")
    axes.legend(frameon=False)
    return figure


def drift_by_law(outcome: Outcome, level: str = "layer") -> Figure:
    """Drift that each law leaves at each size, nats, and the fraction of the original drift that is gone."""
    table = outcome.table(level)
    sizes, laws = list(dict.fromkeys(table["size"])), list(dict.fromkeys(table["law"]))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = sns.color_palette(PALETTE, len(laws))
    for number, law in enumerate(laws):
        own = table[table["law"] == law].set_index("size").reindex(sizes)
        x = np.arange(len(sizes)) + 0.8 * (number - (len(laws) - 1) / 2) / len(laws)
        _bars(left, x, own["drift"], own["low"], own["high"], 0.8 / len(laws), colours[number], law)
        if law != "original":
            middle, low, high = (100 * own[name] for name in ("removed", "removed_low", "removed_high"))
            _bars(right, x, middle, low, high, 0.8 / len(laws), colours[number], law)
    left.set_ylabel("|H(N) − H(T)|, nats")
    right.set_ylabel("drift removed, %")
    right.axhline(0, color="0.3", linewidth=0.8)
    for axes in (left, right):
        axes.set_xticks(np.arange(len(sizes)), sizes)
        axes.set_xlabel("size, pixels")
        axes.grid(visible=False, axis="x")
    left.legend(frameon=False)
    return figure


def image_grid(sweep: Sweep, prompt: str) -> Figure:
    """The same prompt and seed: rows are laws, columns sizes, pictures at their true relative sizes."""
    sizes = sorted(sweep.grid.sizes, key=lambda s: s[0] * s[1])
    laws = [law.name for law in sweep.grid.laws]
    widest, highest = sum(w for _, w in sizes), max(h for h, _ in sizes)
    unit = 9.0 / widest
    figure = Figure(figsize=(9.6, len(laws) * (unit * highest + 0.25)), layout="constrained")
    grid = figure.subplots(len(laws), len(sizes), squeeze=False, width_ratios=[w for _, w in sizes])
    for row, law in enumerate(laws):
        for column, size in enumerate(sizes):
            axes = grid[row, column]
            axes.imshow(sweep.image(prompt, size, sweep.grid.seeds[0], law), interpolation="nearest")
            axes.set_ylim(size[0] - 0.5, size[0] - 0.5 - highest)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            sns.despine(ax=axes, left=True, bottom=True)
            if row == 0:
                axes.set_title(format_size(size), fontsize=9)
        grid[row, 0].set_ylabel(law, fontsize=9)
    return figure


def _bars(
    axes: Axes,
    x: np.ndarray,
    middle: pd.Series,
    low: pd.Series,
    high: pd.Series,
    width: float,
    colour: tuple[float, float, float],
    label: str,
) -> None:
    errors = np.clip(np.stack([middle - low, high - middle]), 0, None)
    axes.bar(x, middle, width, color=colour, label=label, yerr=errors, capsize=2, error_kw={"linewidth": 1})


def _sizes(frame: pd.DataFrame) -> list[Size]:
    pairs = frame[["height", "width"]].drop_duplicates().itertuples(index=False)
    return sorted(((int(h), int(w)) for h, w in pairs), key=lambda s: s[0] * s[1])
