"""Plot scale factors: g of a law against N/T, and of every layer at every size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.laws import HeadEntropy, MeasuredHeads, MeasuredSteps, Paper, ScalingLaw, Site, SiteLaw, factors
from entropy_probe.models import short_name
from entropy_probe.plots.panels import Plot, half_widths, legend_above, mark_bounds
from entropy_probe.plots.theme import row_size, shades

TRAINING_TOKENS = 1024
"""T of the figures. A measured law only depends on N/T."""

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


def draw_head_factors(axes: Axes, law: MeasuredHeads | HeadEntropy) -> pd.DataFrame:
    """Draw g of every head, a row for each layer, at the largest N/T that the law was derived at, or at N/T = 4.

    Returns:
        Columns `layer`, `head`, `ratio` (N/T) and `scale_factor` (g).

    >>> law = MeasuredHeads({"mid": (((math.log(4), 2.0),), ((math.log(4), 1.0),))})
    >>> draw_head_factors(Figure().subplots(), law)["scale_factor"].tolist()
    [2.0, 1.0]
    """
    if isinstance(law, MeasuredHeads):
        heads, ratio = {layer: len(own) for layer, own in law.points.items()}, _derived_ratio(law.points.values())
    else:
        heads, ratio = {layer: len(own) for layer, own in law.entropy.items()}, 4.0
    rows = [
        (layer, head, ratio, factor)
        for layer, count in heads.items()
        for head, factor in enumerate(_at_ratio(law, layer, count, ratio))
    ]
    data = pd.DataFrame(rows, columns=["layer", "head", "ratio", "scale_factor"])
    places = data["layer"].map(list(heads).index)
    axes.axvline(1, color="0.5", linewidth=0.8)
    axes.plot(data["scale_factor"], places, "o", markersize=4, alpha=0.6, label="head")
    means = data.groupby("layer", sort=False)["scale_factor"].mean()
    axes.plot(means, range(len(means)), "|", color="black", markersize=9, label="mean of the heads")
    axes.set_yticks(range(len(heads)), [short_name(name) for name in heads], fontsize=row_size(len(heads))[1])
    axes.set_ylim(len(heads) - 0.4, -0.6)
    axes.set_xlabel(f"scale factor g at N/T = {ratio:.3g}")
    return data


def draw_step_factors(axes: Axes, law: MeasuredSteps) -> pd.DataFrame:
    """Draw g against the noise level, a line for each layer: the mean of its heads, and a band from lowest to highest.

    The band is left out for more than `NAMED_LAYERS` layers. N/T is the largest that the law was derived at.

    Returns:
        Columns `layer`, `noise_level`, `ratio` (N/T), `scale_factor` (g, mean of the heads), `low` and `high`.

    >>> law = MeasuredSteps((0.0, 1.0), {"mid": ((((math.log(4), 1.0),),), (((math.log(4), 4.0),),))})
    >>> draw_step_factors(Figure().subplots(), law)["scale_factor"].round(6).tolist()
    [1.0, 4.0]
    """
    ratio = _derived_ratio(level for levels in law.points.values() for level in levels)
    rows = []
    for layer, levels in law.points.items():
        for noise_level, own in zip(law.noise_levels, levels, strict=True):
            heads = _at_ratio(law, layer, len(own), ratio, noise_level)
            rows.append((layer, noise_level, ratio, sum(heads) / len(heads), min(heads), max(heads)))
    data = pd.DataFrame(rows, columns=["layer", "noise_level", "ratio", "scale_factor", "low", "high"])
    few = len(law.points) <= NAMED_LAYERS
    colours = shades(len(law.points))
    for colour, (layer, own) in zip(colours, data.groupby("layer", sort=False), strict=True):
        label = short_name(str(layer)) if few else None
        axes.plot(own["noise_level"], own["scale_factor"], "o-", color=colour, markersize=3, label=label)
        if few:
            axes.fill_between(own["noise_level"], own["low"], own["high"], color=colour, alpha=0.15, linewidth=0)
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.invert_xaxis()
    axes.set_xlabel("noise level (noise to image)")
    axes.set_ylabel(f"scale factor g at N/T = {ratio:.3g}")
    return data


def _derived_ratio(heads: Iterable[Sequence[Sequence[tuple[float, float]]]]) -> float:
    """Return the largest N/T among the points of all heads."""
    return math.exp(max((place for several in heads for points in several for place, _ in points), default=0.0))


def _at_ratio(
    law: SiteLaw, layer: str, heads: int, ratio: float, noise_level: float | None = None
) -> tuple[float, ...]:
    """Return g of each head of a layer at N/T = `ratio`."""
    tokens = max(1, round(ratio * TRAINING_TOKENS))
    factor = law.factor_at(Site(layer, tokens, TRAINING_TOKENS, heads=heads, noise_level=noise_level))
    return (factor,) * heads if isinstance(factor, int | float) else factor


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
