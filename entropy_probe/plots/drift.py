"""Plot the entropy drift under each law."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.evaluation import Outcome
from entropy_probe.plots.panels import Plot, side_by_side, size_ticks
from entropy_probe.plots.theme import PALETTE


def drift_by_law(outcome: Outcome, level: str = "layer") -> Plot:
    """Plot the drift under each law at each size (left), and the fraction of the original drift that it removes.

    Returns:
        The figure, and its data: the table `Outcome.table(level)`.

    >>> import entropy_probe as ep
    >>> grid = {"prompts": ["noto dog"], "sizes": [(32, 32), (64, 64)]}
    >>> outcome = ep.validate(ep.reference.load(), ["paper"], **grid, steps=1, progress=False)
    >>> figure, data = drift_by_law(outcome)
    >>> data["law"].tolist()
    ['original', 'paper']
    """
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
        side_by_side(right, others.index(law), len(others), removed, colours[law])
    right.set_ylabel("drift removed, % of original")
    right.axhline(0, color="0.3", linewidth=0.8)
    right.axhline(100, color="0.3", linewidth=0.8, linestyle=":")
    size_ticks(right, sizes)
    figure.legend(loc="outside upper center", ncols=len(laws), frameon=False)
    return figure, table


def draw_drift(axes: Axes, outcome: Outcome, level: str = "layer") -> pd.DataFrame:
    """Draw the drift (nats) under each law at each size with 95 % intervals, and return `Outcome.table(level)`.

    >>> import entropy_probe as ep
    >>> grid = {"prompts": ["noto dog"], "sizes": [(32, 32), (64, 64)]}
    >>> outcome = ep.validate(ep.reference.load(), ["paper"], **grid, steps=1, progress=False)
    >>> draw_drift(Figure().subplots(), outcome)["size"].tolist()
    ['32', '32']
    """
    table = outcome.table(level)
    sizes, laws = list(dict.fromkeys(table["size"])), list(dict.fromkeys(table["law"]))
    for number, (law, colour) in enumerate(zip(laws, sns.color_palette(PALETTE, len(laws)), strict=True)):
        own = table[table["law"] == law].set_index("size").reindex(sizes)
        side_by_side(axes, number, len(laws), own[["drift", "low", "high"]], colour, law)
    axes.set_ylabel("drift, nats (root mean square)")
    size_ticks(axes, sizes)
    return table
