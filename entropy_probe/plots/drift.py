"""Plot the entropy drift under each law."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.evaluation import Outcome
from entropy_probe.models import format_size
from entropy_probe.plots.panels import Plot, legend_above, side_by_side, size_ticks
from entropy_probe.plots.theme import PALETTE


def drift_by_law(outcome: Outcome, level: str = "layer") -> Plot:
    """Plot the drift under each law at each size (left), and the fraction of the original drift that it removes.

    The training size is a point at zero.

    Returns:
        The figure, and its data: the table `Outcome.table(level)`.

    >>> import entropy_probe as ep
    >>> grid = {"prompts": ["noto dog"], "sizes": [(32, 32), (64, 64)]}
    >>> outcome = ep.validate(ep.reference.load(), ["paper"], **grid, steps=1, progress=False)
    >>> figure, data = drift_by_law(outcome)
    >>> data["law"].tolist()
    ['original', 'paper']
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    table = draw_drift(left, outcome, level)
    draw_removed(right, outcome, level)
    legend_above(figure, [left], columns=6)
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
    sizes = _sizes(outcome)
    for number, (law, colour) in enumerate(laws := _colours(table).items()):
        own = table[table["law"] == law].set_index("size").reindex(sizes)
        side_by_side(axes, number, len(laws), own[["drift", "low", "high"]], colour, law)
    axes.set_ylabel("drift, nats (root mean square)")
    _mark_training_size(axes, outcome)
    return table


def draw_removed(axes: Axes, outcome: Outcome, level: str = "layer") -> pd.DataFrame:
    """Draw the fraction of the drift that each law removes at each size, with 95 % intervals.

    Returns:
        The rows of `Outcome.table(level)` without the original model.

    >>> import entropy_probe as ep
    >>> grid = {"prompts": ["noto dog"], "sizes": [(32, 32), (64, 64)]}
    >>> outcome = ep.validate(ep.reference.load(), ["paper"], **grid, steps=1, progress=False)
    >>> draw_removed(Figure().subplots(), outcome)["law"].tolist()
    ['paper']
    """
    table = outcome.table(level)
    sizes, colours = list(dict.fromkeys(table["size"])), _colours(table)
    others = [law for law in colours if law != "original"]
    for number, law in enumerate(others):
        own = table[table["law"] == law].set_index("size").reindex(sizes)
        removed = 100 * own[["removed", "removed_low", "removed_high"]]
        side_by_side(axes, number, len(others), removed, colours[law], law)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.axhline(100, color="0.3", linewidth=0.8, linestyle=":")
    axes.set_ylabel("drift removed, % of original")
    size_ticks(axes, sizes)
    return table[table["law"] != "original"].reset_index(drop=True)


def _sizes(outcome: Outcome) -> list[str]:
    """Return the sizes of an outcome, also the training size, by area."""
    sizes = {*outcome.sweep.grid.sizes, outcome.sweep.manifest.training_size}
    return [format_size(size) for size in sorted(sizes, key=lambda s: (s[0] * s[1], s))]


def _colours(table: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    laws = list(dict.fromkeys(table["law"]))
    return dict(zip(laws, sns.color_palette(PALETTE, len(laws)), strict=True))


def _mark_training_size(axes: Axes, outcome: Outcome) -> None:
    """Draw a point at zero for the training size, which has no drift by definition."""
    sizes, trained = _sizes(outcome), format_size(outcome.sweep.manifest.training_size)
    axes.plot([sizes.index(trained)], [0], "o", color="0.35", markersize=5, clip_on=False, zorder=4)
    size_ticks(axes, [f"{size}\n(training)" if size == trained else size for size in sizes])
