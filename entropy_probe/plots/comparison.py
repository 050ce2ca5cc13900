"""Figures of several runs on the same axes: a colour for each run, throughout the page."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from entropy_probe.plots.figures import INTERVAL, PALETTE, row


def by_layer(table: pd.DataFrame, label: str, reference: float) -> Figure:
    """A number of every layer of every run with its interval.

    Args:
        table: `run`, `layer` (those of one name stand on one line), `value`, `low`, `high`.
        label: of the axis.
        reference: drawn as a dotted line.
    """
    runs, layers = list(dict.fromkeys(table["run"])), list(dict.fromkeys(table["layer"]))
    height, font = row(len(layers))
    figure = Figure(figsize=(8, max(height, 0.13 * len(runs)) * len(layers) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.axvline(reference, color="0.5", linewidth=1, linestyle=":")
    for number, (run, colour) in enumerate(zip(runs, sns.color_palette(PALETTE, len(runs)), strict=True)):
        own = table[table["run"] == run]
        places = own["layer"].map(layers.index) + 0.7 * (number - (len(runs) - 1) / 2) / len(runs)
        bars = np.nan_to_num(np.clip([own["value"] - own["low"], own["high"] - own["value"]], 0, None))
        axes.errorbar(own["value"], places, xerr=bars, fmt="o", color=colour, markersize=4, label=run, linewidth=1.2)
    axes.set_yticks(range(len(layers)), layers, fontsize=font)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlabel(label)
    figure.legend(loc="outside upper center", ncols=min(4, len(runs)), frameon=False)
    return figure


def growth(curves: pd.DataFrame) -> Figure:
    """Left, mean entropy against ln N; right, how far it is from that at the training size, against the pixels.

    Args:
        curves: `run`, `tokens` (mean of ln N over the layers), `ratio` (pixels over those in training), `entropy`,
            `entropy_se`, `drift`, `drift_se`, by run and size.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (run, own), colour in zip(curves.groupby("run", sort=False), _colours(curves), strict=True):
        for axes, x, y in ((left, "tokens", "entropy"), (right, "ratio", "drift")):
            ordered = own.dropna(subset=[y]).sort_values(x)
            errors = INTERVAL * ordered[f"{y}_se"].fillna(0.0)
            axes.errorbar(ordered[x], ordered[y], yerr=errors, fmt="o-", color=colour, markersize=4, label=run)
    left.set_xlabel("ln N, mean over the layers")
    left.set_ylabel("mean entropy over the layers, nats")
    right.axhline(0, color="0.5", linewidth=0.8)
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    right.set_xlabel("pixels over those in training")
    right.set_ylabel("H(N) − H(T), nats")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)
    return figure


def over_the_sampling(curves: pd.DataFrame) -> Figure:
    """Mean entropy at the training size against the timestep: `run`, `timestep`, `entropy`, `entropy_se`."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for (run, own), colour in zip(curves.groupby("run", sort=False), _colours(curves), strict=True):
        error = INTERVAL * own["entropy_se"].fillna(0.0)
        axes.plot(own["timestep"], own["entropy"], color=colour, label=run)
        band = (own["entropy"] - error, own["entropy"] + error)
        axes.fill_between(own["timestep"], *band, color=colour, alpha=0.2, linewidth=0)
    axes.invert_xaxis()
    axes.set_xlabel("timestep (noise to image)")
    axes.set_ylabel("entropy, nats (mean over layers)")
    axes.legend(edgecolor="none")
    return figure


def drift(drifts: pd.DataFrame) -> Figure:
    """A panel per law: the drift that is left, against the pixels; `run`, `law`, `ratio`, `drift`, `low`, `high`."""
    laws = list(dict.fromkeys(drifts["law"]))
    columns = min(3, len(laws))
    rows = -(-len(laws) // columns)
    figure = Figure(figsize=(max(5.5, 3.3 * columns), 3 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    colours = dict(zip(dict.fromkeys(drifts["run"]), _colours(drifts), strict=True))
    for axes, law in zip(panels.flat, laws, strict=False):
        for run, own in drifts[drifts["law"] == law].sort_values("ratio").groupby("run", sort=False):
            axes.plot(own["ratio"], own["drift"], "o-", color=colours[run], markersize=4, label=run)
            axes.fill_between(own["ratio"], own["low"], own["high"], color=colours[run], alpha=0.2, linewidth=0)
        axes.set_title(law)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.set_xlabel("pixels over those in training")
    for axes in panels[:, 0]:
        axes.set_ylabel("drift |H(N) − H(T)|, nats")
    for axes in panels.flat[len(laws) :]:
        axes.set_visible(False)
    shown = dict(pair[::-1] for axes in panels.flat for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    order = [run for run in colours if run in shown]
    handles = [shown[run] for run in order]
    figure.legend(handles, order, loc="outside upper center", ncols=min(4, len(order)), frameon=False)
    return figure


def _colours(table: pd.DataFrame) -> list[tuple[float, float, float]]:
    return list(sns.color_palette(PALETTE, table["run"].nunique()))
