"""Plot the denoising loss against the scale factor."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.plots.panels import Plot, legend_above
from entropy_probe.plots.theme import shades

PERCENT = {"change": "change_percent", "low": "low_percent", "high": "high_percent"}


def loss_by_factor(tables: Mapping[str, pd.DataFrame]) -> Plot:
    """Plot the change of the denoising loss against g, kappa or both, a line and a 95 % band for each size.

    Args:
        tables: tables of `LossCurve`, by the name of the number on the x axis: `{"g": curve.table()}`.

    Returns:
        The figure, and its data: `factor` (the name), `value`, `size`, `change_percent`, `low_percent`, `high_percent`.

    >>> table = pd.DataFrame({"size": "128", "g": [1.0, 1.5], "change": [0.0, -0.02], "low": -0.03, "high": 0.01})
    >>> figure, data = loss_by_factor({"g": table})
    >>> data["value"].tolist()
    [1.0, 1.5]
    """
    figure = Figure(figsize=(max(6.0, 4.6 * len(tables)), 3.8), layout="constrained")
    panels = list(figure.subplots(1, len(tables), squeeze=False)[0])
    parts = []
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        parts.append(draw_loss(axes, table, name).rename(columns={name: "value"}).assign(factor=name))
    legend_above(figure, panels[:1], columns=6, title="size, pixels")
    return figure, pd.concat(parts, ignore_index=True)[["factor", "value", "size", *PERCENT.values()]]


def draw_loss(axes: Axes, table: pd.DataFrame, x: str, hue: str = "size") -> pd.DataFrame:
    """Draw the change of the loss in percent against the column `x`, a line and a 95 % band for each value of `hue`.

    Returns:
        Columns `hue`, `x`, `change_percent`, `low_percent`, `high_percent`.

    >>> table = pd.DataFrame({"size": "128", "g": [1.0, 1.5], "change": [0.0, -0.02], "low": -0.03, "high": 0.01})
    >>> draw_loss(Figure().subplots(), table, "g")["change_percent"].tolist()
    [0.0, -2.0]
    """
    data = table[[hue, x]].assign(**{name: 100 * table[column] for column, name in PERCENT.items()})
    values = list(dict.fromkeys(data[hue]))
    for value, colour in zip(values, shades(len(values)), strict=True):
        own = data[data[hue] == value].sort_values(x)
        axes.plot(own[x], own["change_percent"], "o-", color=colour, label=str(value), markersize=3)
        axes.fill_between(own[x], own["low_percent"], own["high_percent"], color=colour, alpha=0.25, linewidth=0)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_xlabel({"kappa": "κ in g² = 1 + κ ln(N/T)", "g": "g, factor of the logits"}.get(x, x))
    # Without a limit, the large losses at the ends of the scan would hide the minima.
    axes.set_ylim(min(-4.0, data["low_percent"].min() - 1), 8)
    axes.set_ylabel("change of the loss, %")
    return data
