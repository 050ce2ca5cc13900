"""Plot scale factors: g of a law against N/T, and of every layer at every size."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.laws import Paper, ScalingLaw, factors
from entropy_probe.models import short_name
from entropy_probe.plots.panels import Plot, half_widths, legend_above, mark_bounds
from entropy_probe.plots.theme import row_size, shades

NAMED_LAYERS = 16
"""Maximum number of layers that a legend names."""


def draw_factors(axes: Axes, law: ScalingLaw) -> pd.DataFrame:
    """Draw g against N/T, a line for each layer of the law, and the paper's law at T = 1024.

    Returns:
        Columns `law`, `layer` (`*` is every layer), `ratio` (N/T), `scale_factor` (g) and `bound` (`at most`,
        `at least`, or empty).

    >>> from entropy_probe.laws import Kappa
    >>> draw_factors(Figure().subplots(), Kappa({"*": 0.5}))["law"].unique().tolist()
    ['kappa=0.5', 'paper']
    """
    ratios = np.geomspace(0.25, 9, 61).tolist()
    own = factors(law, ratios)
    lines = own.groupby("layer", sort=False)
    for colour, (name, line) in zip(shades(len(lines)), lines, strict=True):
        label = law.name if name == "*" else short_name(str(name))
        shown = label if len(lines) <= NAMED_LAYERS else None
        known = line["scale_factor"].where(line["bound"] == "")
        axes.plot(line["ratio"], known, color=colour, linewidth=1.5, label=shown)
        if known.isna().any():  # a bound, not an estimate
            bound = line["scale_factor"].where(line["bound"] != "")
            axes.plot(line["ratio"], bound, ":", color=colour, linewidth=1.5, label=f"_{label}, bound")
    if (own["bound"] != "").any():
        axes.plot([], [], ":", color="0.3", label="bound of the search")
    paper = factors(Paper(), ratios)
    axes.plot(paper["ratio"], paper["scale_factor"], "k--", linewidth=1, label="paper's law, T = 1024")
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("N/T, tokens relative to training")
    axes.set_ylabel("g, factor of the logits")
    data = pd.concat([own.assign(law=law.name), paper.assign(law=Paper().name)], ignore_index=True)
    return data[["law", "layer", "ratio", "scale_factor", "bound"]]


def factors_by_layer(table: pd.DataFrame) -> Plot:
    """Plot g of every layer at every size with its 95 % interval, in network order, and the paper's g.

    Args:
        table: `layer`, `ratio` (N/T), `scale_factor`, `low`, `high`, `bound`, `paper` (the paper's g); see
            `tables.factors_with_intervals`.

    Returns:
        The figure, and its data: `layer`, `series` (`law` or `paper`), `ratio`, `scale_factor`, `low`, `high`, `bound`.

    >>> row = {"layer": "mid", "ratio": 4.0, "scale_factor": 1.5, "low": 1.4, "high": 1.6, "bound": "", "paper": 1.1}
    >>> figure, data = factors_by_layer(pd.DataFrame([row]))
    >>> data["series"].tolist()
    ['law', 'paper']
    """
    rows = table["layer"].nunique()
    row_height = max(row_size(rows)[0], 0.1 * table["ratio"].nunique())
    figure = Figure(figsize=(8, row_height * rows + 1.6), layout="constrained")
    axes = figure.subplots()
    data = draw_factors_by_layer(axes, table)
    legend_above(figure, [axes], columns=4)
    return figure, data


def draw_factors_by_layer(axes: Axes, table: pd.DataFrame) -> pd.DataFrame:
    """Draw g of every layer at every size with its 95 % interval, in network order, and the paper's g.

    Args:
        axes: where to draw.
        table: see `factors_by_layer`.

    Returns:
        The data of `factors_by_layer`.

    >>> row = {"layer": "mid", "ratio": 4.0, "scale_factor": 1.5, "low": 1.4, "high": 1.6, "bound": "", "paper": 1.1}
    >>> draw_factors_by_layer(Figure().subplots(), pd.DataFrame([row]))["scale_factor"].tolist()
    [1.5, 1.1]
    """
    layers, ratios = list(dict.fromkeys(table["layer"])), sorted(set(table["ratio"]))
    font = row_size(len(layers))[1]
    axes.axvline(1, color="0.5", linewidth=0.8)
    columns = ["layer", "ratio", "scale_factor", "low", "high", "bound"]
    paper = table[["layer", "ratio"]].assign(scale_factor=table["paper"], bound="", series="paper")
    for number, (ratio, colour) in enumerate(zip(ratios, shades(len(ratios)), strict=True)):
        own = table[table["ratio"] == ratio]
        places = own["layer"].map(layers.index) + 0.7 * (number - (len(ratios) - 1) / 2) / len(ratios)
        bars = half_widths(own["scale_factor"], own["low"], own["high"])
        style: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 4, "linewidth": 1.2}
        axes.errorbar(own["scale_factor"], places, xerr=bars, label=f"N/T = {ratio:.3g}", **style)
        mark_bounds(axes, own["scale_factor"], places, own["bound"], colour)
        axes.plot(own["paper"], places, "|", color=colour, markersize=7, label=f"_paper, N/T = {ratio:.3g}")
    axes.plot([], [], "|", color="0.3", markersize=7, label="paper's law")
    if (table["bound"] != "").any():
        axes.plot([], [], ">", color="0.3", markersize=8, fillstyle="none", label="bound: g may be further out")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.set_yticks(np.arange(len(layers)), [short_name(name) for name in layers], fontsize=font)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlabel("scale factor g; 1 does not change the layer")
    data = pd.concat([table[columns].assign(series="law"), paper], ignore_index=True)
    return data[["layer", "series", *columns[1:]]]
