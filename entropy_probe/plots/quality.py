"""Plot the image metrics under each law."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from entropy_probe.evaluation import Quality
from entropy_probe.models import format_size
from entropy_probe.plots.panels import Plot, half_widths, legend_above, panel_grid
from entropy_probe.plots.tables import metric_label, quality_against_kappa, quality_values
from entropy_probe.plots.theme import PALETTE, shades


def quality_by_law(quality: Quality, metrics: Sequence[str] | None = None) -> Plot:
    """Plot each metric against the size, a line per law with 95 % intervals of the difference from the original.

    At the training size every law leaves the model unchanged, so all lines meet.

    Args:
        quality: the metrics of the images.
        metrics: names of the metrics; by default, all.

    Returns:
        The figure, and its data: `law`, `size`, `metric`, `value`, `low`, `high`.

    >>> from entropy_probe.evaluation import MetricDifference
    >>> original = pd.DataFrame({"size": [(32, 32)], "metric": ["repetition"], "value": [0.4]})
    >>> change = MetricDifference("paper", (32, 32), "repetition", 0.3, -0.1, -0.2, 0.0, 0.05, "better", 8, 8)
    >>> quality = Quality(pd.DataFrame(), original, (change,))
    >>> figure, data = quality_by_law(quality)
    >>> data[["law", "value"]].to_numpy().tolist()
    [['original', 0.4], ['paper', 0.3]]
    """
    figure, panels = _metric_panels(quality, metrics)
    sizes = [format_size(size) for size in sorted(set(quality.original["size"]), key=lambda s: s[0] * s[1])]
    data = _with_training_size(quality_values(quality), sizes)
    data = data[data["metric"].isin(panels)].reset_index(drop=True)
    laws = list(dict.fromkeys(data["law"]))
    colours = dict(zip(laws, sns.color_palette(PALETTE, len(laws)), strict=True))
    for metric, axes in panels.items():
        for number, law in enumerate(laws):
            own = data[(data["law"] == law) & (data["metric"] == metric)].set_index("size").reindex(sizes)
            if law == "original":
                axes.plot(range(len(sizes)), own["value"], "o--", color=colours[law], label=law)
                continue
            x = np.arange(len(sizes)) + 0.08 * number
            bars = half_widths(own["value"], own["low"], own["high"])
            style: dict[str, Any] = {"fmt": "o-", "linewidth": 1, "elinewidth": 1.5, "markersize": 4}
            axes.errorbar(x, own["value"], yerr=bars, color=colours[law], label=law, **style)
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set_xlabel("size, pixels")
    legend_above(figure, figure.axes[:1], columns=6)
    return figure, data


def _with_training_size(values: pd.DataFrame, sizes: Sequence[str]) -> pd.DataFrame:
    """Add the value of the original wherever a law was not compared: there g = 1."""
    original = values.loc[values["law"] == "original", ["metric", "size", "value"]]
    laws, metrics = dict.fromkeys(values["law"]), dict.fromkeys(values["metric"])
    every = pd.MultiIndex.from_product([laws, metrics, sizes], names=["law", "metric", "size"])
    data = values.set_index(["law", "metric", "size"]).reindex(every).reset_index()
    data = data.merge(original, on=["metric", "size"], how="left", suffixes=("", "_original"))
    data["value"] = data["value"].fillna(data["value_original"])
    return data[["law", "size", "metric", "value", "low", "high"]]


def quality_by_kappa(quality: Quality, kappas: pd.DataFrame, metrics: Sequence[str] | None = None) -> Plot:
    """Plot each metric against kappa, a line per size through the laws, which differ in kappa.

    Args:
        quality: the metrics of the images.
        kappas: `law`, `size` (as `format_size` writes it), `kappa`; see `tables.kappa_of_laws`.
        metrics: names of the metrics; by default, all.

    Returns:
        The figure, and its data; see `tables.quality_against_kappa`.

    >>> from entropy_probe.evaluation import MetricDifference
    >>> original = pd.DataFrame({"size": [(32, 32)], "metric": ["repetition"], "value": [0.4]})
    >>> change = MetricDifference("paper", (32, 32), "repetition", 0.3, -0.1, -0.2, 0.0, 0.05, "better", 8, 8)
    >>> quality = Quality(pd.DataFrame(), original, (change,))
    >>> kappas = pd.DataFrame({"law": ["original", "paper"], "size": "32", "kappa": [0.0, 0.2]})
    >>> figure, data = quality_by_kappa(quality, kappas)
    >>> data["kappa"].tolist()
    [0.0, 0.2]
    """
    figure, panels = _metric_panels(quality, metrics)
    data = quality_against_kappa(quality, kappas)
    data = data[data["metric"].isin(panels)].reset_index(drop=True)
    sizes, laws = list(dict.fromkeys(data["size"])), list(dict.fromkeys(data["law"]))
    shapes = dict(zip(laws, itertools.cycle("osD^vPX*"), strict=False))
    for metric, axes in panels.items():
        for size, colour in zip(sizes, shades(len(sizes)), strict=True):
            own = data[(data["size"] == size) & (data["metric"] == metric)].sort_values("kappa")
            bars = half_widths(own["value"], own["low"], own["high"])
            axes.errorbar(own["kappa"], own["value"], yerr=bars, fmt="-", color=colour, linewidth=1, label=size)
            for row in own.itertuples():
                style: dict[str, Any] = {"color": colour, "linestyle": "none", "markersize": 5}
                axes.plot(row.kappa, row.value, marker=shapes[row.law], label=f"_{row.law}, {size}", **style)
        axes.set_xlabel("κ, mean over the layers")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    handles += [Line2D([], [], color="0.5", marker=shapes[law], linestyle="none", markersize=5) for law in laws]
    columns = min(8, len(handles))
    figure.legend(handles, labels + laws, loc="outside upper center", ncols=columns, frameon=False)
    return figure, data


def _metric_panels(quality: Quality, metrics: Sequence[str] | None) -> tuple[Figure, dict[str, Axes]]:
    """Create a panel for each metric that was measured."""
    measured = dict.fromkeys(c.metric for c in quality.comparisons)
    shown = [metric for metric in metrics or measured if metric in measured]
    figure, panels = panel_grid(len(shown), 2.9, 0.4)
    for metric, axes in zip(shown, panels, strict=True):
        axes.set_title(metric_label(metric).replace(" (", "\n("), fontsize=9)  # networks have long names
    return figure, dict(zip(shown, panels, strict=True))
