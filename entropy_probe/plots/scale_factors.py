"""Plot scale factors: g of a law against N/T, and kappa of every layer."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.laws import Measured, Paper, ScalingLaw, factors
from entropy_probe.models import short_name
from entropy_probe.plots.panels import Plot, half_widths
from entropy_probe.plots.theme import PALETTE, row_size, shades

NAMED_LAYERS = 16
"""Maximum number of layers that a legend names."""


def draw_factors(axes: Axes, law: ScalingLaw) -> pd.DataFrame:
    """Draw g against N/T, a line for each layer of the law, and the paper's law at T = 1024.

    Returns:
        Columns `law`, `layer` (`*` is every layer), `ratio` (N/T) and `scale_factor` (g).

    >>> from entropy_probe.laws import Kappa
    >>> draw_factors(Figure().subplots(), Kappa({"*": 0.5}))["law"].unique().tolist()
    ['kappa=0.5', 'paper']
    """
    ratios = np.geomspace(0.25, 9, 61).tolist()
    own = factors(law, ratios)
    lines = own.set_index("ratio").groupby("layer", sort=False)["scale_factor"]
    for colour, (name, line) in zip(shades(len(lines)), lines, strict=True):
        label = law.name if name == "*" else short_name(str(name))
        axes.plot(line.index, line, color=colour, linewidth=1.5, label=label if len(lines) <= NAMED_LAYERS else None)
    paper = factors(Paper(), ratios)
    axes.plot(paper["ratio"], paper["scale_factor"], "k--", linewidth=1, label="paper's law, T = 1024")
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("N/T, tokens relative to training")
    axes.set_ylabel("g, factor of the logits")
    data = pd.concat([own.assign(law=law.name), paper.assign(law=Paper().name)], ignore_index=True)
    return data[["law", "layer", "ratio", "scale_factor"]]


def kappa_by_layer(kappa: pd.DataFrame, law: ScalingLaw | None = None) -> Plot:
    """Plot kappa of every layer with its 95 % interval, in network order, and the paper's 1/ln T.

    A measured law has a factor for each size. The plot then shows kappa at each size too: if these values are far
    apart, one number is not enough for the layer.

    Args:
        kappa: `layer`, `kappa`, `low`, `high`, `paper`; see `Derivation.kappa`.
        law: the derived law.

    Returns:
        The figure, and its data: `layer`, `series` (`all sizes`, `one size`, `paper`), `ln_ratio` (ln(N/T) of the size,
        NaN for the other series), `kappa`, `low`, `high`.

    >>> kappa = pd.DataFrame({"layer": ["mid"], "kappa": [0.5], "low": [0.4], "high": [0.6], "paper": [0.2]})
    >>> figure, data = kappa_by_layer(kappa)
    >>> data["series"].tolist()
    ['all sizes', 'paper']
    """
    names = [short_name(name) for name in kappa["layer"]]
    height, font = row_size(len(names))
    figure = Figure(figsize=(8, height * len(names) + 1.4), layout="constrained")
    axes = figure.subplots()
    y = np.arange(len(names))
    colours = sns.color_palette(PALETTE)
    axes.axvline(0, color="0.5", linewidth=0.8)
    parts = [
        kappa[["layer", "kappa", "low", "high"]].assign(series="all sizes"),
        kappa[["layer"]].assign(kappa=kappa["paper"], series="paper"),
    ]
    if isinstance(law, Measured):
        own = _kappa_by_size(law, list(kappa["layer"]))
        places = own["layer"].map(list(kappa["layer"]).index)
        style: dict[str, Any] = {"s": 26, "edgecolors": "0.35", "linewidths": 0.6, "zorder": 3}
        dots = axes.scatter(own["kappa"], places, c=own["ln_ratio"], cmap="vlag", **style)
        figure.colorbar(dots, ax=axes, label="kappa at one size: its ln(N/T)", shrink=0.6)
        limit = np.abs(own["ln_ratio"]).max() if len(own) else 0.1
        dots.set_clim(-limit, limit)
        parts.append(own)
    bars = half_widths(kappa["kappa"], kappa["low"], kappa["high"])
    axes.errorbar(kappa["kappa"], y, xerr=bars, fmt="o", color="black", capsize=3, label="all sizes, 95 % interval")
    axes.plot(kappa["paper"], y, "D", color=colours[3], markersize=5, label="paper, 1/ln T")
    axes.set_yticks(y, names, fontsize=font)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("κ in g² = 1 + κ ln(N/T); κ = 0 does not change the layer")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    columns = ["layer", "series", "ln_ratio", "kappa", "low", "high"]
    return figure, pd.concat(parts, ignore_index=True).reindex(columns=columns)


def _kappa_by_size(law: Measured, layers: list[str]) -> pd.DataFrame:
    """Compute kappa of each layer at each measured size."""
    rows = [
        {
            "layer": layer,
            "series": "one size",
            "ln_ratio": x,
            "kappa": (g**2 - 1) / x,
        }
        for layer in layers
        for x, g in law.points.get(layer, ())
        if x
    ]
    return pd.DataFrame(rows, columns=["layer", "series", "ln_ratio", "kappa"])
