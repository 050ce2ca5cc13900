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
from entropy_probe.evaluation.differences import UNDECIDED
from entropy_probe.models import format_size
from entropy_probe.plots.panels import Plot, half_widths, is_first_column, legend_above, panel_grid, size_ticks
from entropy_probe.plots.tables import metric_label, quality_against_kappa, quality_values
from entropy_probe.plots.theme import PALETTE, shades


def quality_by_law(quality: Quality, metrics: Sequence[str] | None = None) -> Plot:
    """Plot the change of each metric from the original model, with its 95 % interval, a panel per metric.

    Args:
        quality: the metrics of the images.
        metrics: names of the metrics; by default, all.

    Returns:
        The figure, and its data; see `draw_change`.

    >>> from entropy_probe.evaluation import MetricDifference
    >>> original = pd.DataFrame({"size": [(32, 32)], "metric": ["repetition"], "value": [0.4]})
    >>> change = MetricDifference("paper", (32, 32), "repetition", 0.3, -0.1, -0.2, 0.0, 0.05, "better", 8, 8)
    >>> quality = Quality(pd.DataFrame(), original, (change,))
    >>> figure, data = quality_by_law(quality)
    >>> data[["law", "value"]].to_numpy().tolist()
    [['original', 0.4], ['paper', 0.3]]
    """
    figure, panels = _metric_panels(quality, metrics)
    parts = [draw_change(axes, quality, metric) for metric, axes in panels.items()]
    legend_above(figure, figure.axes[:1], columns=6)
    return figure, pd.concat(parts, ignore_index=True)


def draw_change(axes: Axes, quality: Quality, metric: str) -> pd.DataFrame:
    """Draw the change of a metric from the original model at each size, with 95 % intervals, next to a zero line.

    Sizes have no order, so no line joins them. Filled dots are decided: better, worse or equivalent. A law leaves the
    model unchanged at the training size, so the point of the training size is at zero. Grey is the equivalence margin.

    Returns:
        Columns `law`, `size`, `metric`, `value`, `difference`, `low`, `high` (95 % interval of the difference).

    >>> from entropy_probe.evaluation import MetricDifference
    >>> original = pd.DataFrame({"size": [(32, 32)], "metric": ["repetition"], "value": [0.4]})
    >>> change = MetricDifference("paper", (32, 32), "repetition", 0.3, -0.1, -0.2, 0.0, 0.05, "better", 8, 8)
    >>> data = draw_change(Figure().subplots(), Quality(pd.DataFrame(), original, (change,)), "repetition")
    >>> data["difference"].tolist()
    [0.0, -0.1]
    """
    sizes = [format_size(size) for size in sorted(set(quality.original["size"]), key=lambda s: (s[0] * s[1], s))]
    data = quality_values(quality)
    data = _with_training_size(data[data["metric"] == metric], sizes)
    compared = {(c.law, format_size(c.size)): c for c in quality.comparisons if c.metric == metric}
    laws = list(dict.fromkeys(data["law"]))
    colours = dict(zip(laws, sns.color_palette(PALETTE, len(laws)), strict=True))
    for place, size in enumerate(sizes):
        margins = [c.margin for (_, its), c in compared.items() if its == size]
        if margins and np.isfinite(margins[0]):
            axes.fill_between([place - 0.4, place + 0.4], -margins[0], margins[0], color="0.5", alpha=0.15, linewidth=0)
        if not margins:
            axes.plot([place], [0], "o", color="0.35", markersize=5)
    axes.axhline(0, color="0.4", linewidth=0.9)
    others = [law for law in laws if law != "original"]
    for number, law in enumerate(others):
        style: dict[str, Any] = {"color": colours[law], "fmt": "o", "elinewidth": 1.5, "markersize": 5}
        axes.errorbar([], [], yerr=[], label=law, **style)
        for place, size in enumerate(sizes):
            if (law, size) in compared:
                c = compared[law, size]
                x = place + 0.5 * (number - (len(others) - 1) / 2) / len(others)
                bars = half_widths(*(pd.Series([end]) for end in (c.difference, c.low, c.high)))
                fill = colours[law] if c.verdict != UNDECIDED else "none"
                axes.errorbar([x], [c.difference], yerr=bars, label=f"_{law}", markerfacecolor=fill, **style)
    trained = [size for size in sizes if all(its != size for _, its in compared)]
    size_ticks(axes, [f"{size}\n(training)" if size in trained else size for size in sizes])
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_ylabel("change from the original")
    _name_metric(axes, metric)
    return data


def _with_training_size(values: pd.DataFrame, sizes: Sequence[str]) -> pd.DataFrame:
    """Add the value of the original wherever a law was not compared: there g = 1."""
    original = values.loc[values["law"] == "original", ["metric", "size", "value"]]
    laws, metrics = dict.fromkeys(values["law"]), dict.fromkeys(values["metric"])
    every = pd.MultiIndex.from_product([laws, metrics, sizes], names=["law", "metric", "size"])
    data = values.set_index(["law", "metric", "size"]).reindex(every).reset_index()
    data = data.merge(original, on=["metric", "size"], how="left", suffixes=("", "_original"))
    data["value"] = data["value"].fillna(data["value_original"])
    data["difference"] = data["difference"].fillna(0.0)
    return data[["law", "size", "metric", "value", "difference", "low", "high"]]


def quality_by_kappa(quality: Quality, kappas: pd.DataFrame, metrics: Sequence[str] | None = None) -> Plot:
    """Plot the change of each metric from the original model against kappa, a line per size through the laws.

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
    for metric, axes in panels.items():
        _name_metric(axes, metric)
    data = quality_against_kappa(quality, kappas)
    data = data[data["metric"].isin(panels)].reset_index(drop=True)
    sizes, laws = list(dict.fromkeys(data["size"])), list(dict.fromkeys(data["law"]))
    shapes = dict(zip(laws, itertools.cycle("osD^vPX*"), strict=False))
    for metric, axes in panels.items():
        for size, colour in zip(sizes, shades(len(sizes)), strict=True):
            own = data[(data["size"] == size) & (data["metric"] == metric)].sort_values("kappa")
            bars = half_widths(own["difference"], own["low"], own["high"])
            axes.errorbar(own["kappa"], own["difference"], yerr=bars, fmt="-", color=colour, linewidth=1, label=size)
            for row in own.itertuples():
                style: dict[str, Any] = {"color": colour, "linestyle": "none", "markersize": 5}
                axes.plot(row.kappa, row.difference, marker=shapes[row.law], label=f"_{row.law}, {size}", **style)
        axes.axhline(0, color="0.4", linewidth=0.9)
        axes.set_xlabel("κ, mean over the layers")
        axes.set_ylabel("change from the original" if is_first_column(axes) else "")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    handles += [Line2D([], [], color="0.5", marker=shapes[law], linestyle="none", markersize=5) for law in laws]
    columns = min(4, len(handles))
    figure.legend(handles, labels + laws, loc="outside upper left", ncols=columns, frameon=False)
    return figure, data


def _name_metric(axes: Axes, metric: str) -> None:
    axes.set_title(metric_label(metric).replace(" (", "\n("), fontsize=9)  # networks have long names


def _metric_panels(quality: Quality, metrics: Sequence[str] | None) -> tuple[Figure, dict[str, Axes]]:
    """Create a panel for each metric that was measured."""
    measured = dict.fromkeys(c.metric for c in quality.comparisons)
    shown = [metric for metric in metrics or measured if metric in measured]
    figure, panels = panel_grid(len(shown), 2.9, 0.4)
    return figure, dict(zip(shown, panels, strict=True))
