"""Plot several runs on the same axes, with one colour per run."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.plots.panels import Plot, half_widths, is_first_column, legend_above, mark_bounds, panel_grid
from entropy_probe.plots.theme import PALETTE, row_size

RATIO = "pixels relative to the training size"


def layers_of_runs(table: pd.DataFrame, label: str, reference: float) -> Plot:
    """Plot a number of every layer of every run with its interval. Layers with the same name share a line.

    Args:
        table: `run`, `layer`, `value`, `low`, `high`, and `bound` if some values are only bounds.
        label: label of the x axis.
        reference: position of a dotted line.

    Returns:
        The figure, and the table.

    >>> table = pd.DataFrame({"run": ["base", "tuned"], "layer": "mid", "value": [0.9, 1.0], "low": 0.8, "high": 1.1})
    >>> figure, data = layers_of_runs(table, "slope b, nats", reference=1.0)
    >>> data is table
    True
    """
    runs, layers = list(dict.fromkeys(table["run"])), list(dict.fromkeys(table["layer"]))
    height, font = row_size(len(layers))
    figure = Figure(figsize=(8, max(height, 0.13 * len(runs)) * len(layers) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.axvline(reference, color="0.5", linewidth=1, linestyle=":")
    for number, (run, colour) in enumerate(zip(runs, sns.color_palette(PALETTE, len(runs)), strict=True)):
        own = table[table["run"] == run]
        places = own["layer"].map(layers.index) + 0.7 * (number - (len(runs) - 1) / 2) / len(runs)
        style: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 4, "label": run, "linewidth": 1.2}
        axes.errorbar(own["value"], places, xerr=half_widths(own["value"], own["low"], own["high"]), **style)
        if "bound" in own:
            mark_bounds(axes, own["value"], places, own["bound"], colour)
    axes.set_yticks(range(len(layers)), layers, fontsize=font)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlabel(label)
    legend_above(figure, [axes], columns=3, left=True)
    return figure, table


def growth_of_runs(curves: pd.DataFrame) -> Plot:
    """Plot the mean entropy against ln N (left), and its change from the training size against the pixels.

    Args:
        curves: `run`, `ln_tokens` (mean over the layers), `ratio` (pixels relative to the training size), `entropy`,
            `drift`, and `entropy_half_width`, `drift_half_width` (of the 95 % intervals), all in nats; a row per run
            and size.

    Returns:
        The figure, and the table.

    >>> table = pd.DataFrame({"run": ["base"], "ln_tokens": [5.5], "ratio": [1.0], "entropy": [3.0], "drift": [0.0]})
    >>> figure, data = growth_of_runs(table.assign(entropy_half_width=0.1, drift_half_width=0.0))
    >>> len(figure.axes)
    2
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_growth(left, curves)
    draw_growth(right, curves, change=True)
    legend_above(figure, [left], columns=4)
    return figure, curves


def draw_growth(axes: Axes, curves: pd.DataFrame, change: bool = False) -> pd.DataFrame:
    """Draw the mean entropy of each run against ln N, or its change from the training size against the pixels.

    Sizes of different shape have no order, so no line joins them.

    Args:
        axes: where to draw.
        curves: see `growth_of_runs`.
        change: draw the change.

    Returns:
        The table.

    >>> table = pd.DataFrame({"run": ["base"], "ln_tokens": [5.5], "ratio": [1.0], "entropy": [3.0], "drift": [0.0]})
    >>> len(draw_growth(Figure().subplots(), table.assign(entropy_half_width=0.1, drift_half_width=0.0)))
    1
    """
    x, y = ("ratio", "drift") if change else ("ln_tokens", "entropy")
    for (run, own), colour in zip(curves.groupby("run", sort=False), _colours(curves), strict=True):
        known = own.dropna(subset=[y])
        axes.errorbar(
            known[x], known[y], yerr=known[f"{y}_half_width"], fmt="o", color=colour, markersize=4, label=run, capsize=2
        )
    if change:
        axes.axhline(0, color="0.5", linewidth=0.8)
        _ratio_axis(axes)
    else:
        axes.set_xlabel("ln N, mean over the layers")
    axes.set_ylabel("H(N) − H(T), nats" if change else "mean entropy over the layers, nats")
    return curves


def noise_levels_of_runs(curves: pd.DataFrame) -> Plot:
    """Plot the mean entropy at the training size against the noise level, with 95 % bands. A point is a step.

    Args:
        curves: `run`, `noise_level`, `entropy`, `entropy_half_width` (of the 95 % interval), in nats.

    Returns:
        The figure, and the table.

    >>> table = pd.DataFrame({"run": "base", "noise_level": [0.9, 0.1], "entropy": [3.0, 2.0]})
    >>> figure, data = noise_levels_of_runs(table.assign(entropy_half_width=0.1))
    >>> len(figure.axes)
    1
    """
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for (run, own), colour in zip(curves.groupby("run", sort=False), _colours(curves), strict=True):
        error = own["entropy_half_width"]
        axes.plot(own["noise_level"], own["entropy"], "o-", color=colour, markersize=3, label=run)
        band = (own["entropy"] - error, own["entropy"] + error)
        axes.fill_between(own["noise_level"], *band, color=colour, alpha=0.2, linewidth=0)
    axes.invert_xaxis()
    axes.set_xlabel("noise level (noise to image)")
    axes.set_ylabel("entropy, nats (mean over layers)")
    axes.legend(edgecolor="none")
    return figure, curves


def drift_of_runs(drifts: pd.DataFrame) -> Plot:
    """Plot the remaining drift against the pixels, a panel per law, with 95 % intervals. The training size is at zero.

    Args:
        drifts: `run`, `law`, `ratio` (pixels relative to the training size), `drift`, `low`, `high` (nats).

    Returns:
        The figure, and the table.

    >>> drifts = pd.DataFrame({"run": "base", "law": ["paper"], "ratio": 4.0, "drift": 0.3, "low": 0.2, "high": 0.4})
    >>> figure, data = drift_of_runs(drifts)
    >>> [axes.get_title() for axes in figure.axes]
    ['paper']
    """
    laws = list(dict.fromkeys(drifts["law"]))
    figure, panels = panel_grid(len(laws), 3, 0.5, sharey=True)
    colours = dict(zip(dict.fromkeys(drifts["run"]), _colours(drifts), strict=True))
    for axes, law in zip(panels, laws, strict=True):
        for run, own in drifts[drifts["law"] == law].sort_values("ratio").groupby("run", sort=False):
            bars = half_widths(own["drift"], own["low"], own["high"])
            style: dict[str, Any] = {"fmt": "o", "color": colours[run], "markersize": 4, "capsize": 2}
            axes.errorbar(own["ratio"], own["drift"], yerr=bars, label=run, **style)
        axes.plot([1], [0], "o", color="0.35", markersize=5)  # the training size
        axes.set_title(law)
        _ratio_axis(axes)
        if is_first_column(axes):
            axes.set_ylabel("drift, nats (root mean square)")
    legend_above(figure, panels, list(colours), columns=3, left=True)
    return figure, drifts


def _ratio_axis(axes: Axes) -> None:
    """Label the x axis with the number of pixels relative to the training size."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel(RATIO)


def _colours(table: pd.DataFrame) -> list[tuple[float, float, float]]:
    return list(sns.color_palette(PALETTE, table["run"].nunique()))
