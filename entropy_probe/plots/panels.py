"""Parts that several figures share: grids of panels, legends, axes of sizes, and bars with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.models import Size

Plot = tuple[Figure, pd.DataFrame]
"""A figure and the data in it, one row for each number or group of numbers."""


def panel_grid(count: int, height: float, margin: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Create a figure with `count` panels in up to three columns.

    Args:
        count: number of panels.
        height: height of a row, inches.
        margin: height of the legend, inches.
        options: passed to `Figure.subplots`.
    """
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(5.5, 3.3 * columns), height * rows + margin), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def is_first_column(axes: Axes) -> bool:
    """Return whether a panel is in the first column of its grid."""
    place = axes.get_subplotspec()
    return place is not None and place.is_first_col()


def legend_above(
    figure: Figure,
    panels: Sequence[Axes],
    names: Sequence[str] | None = None,
    *,
    columns: int,
    title: str | None = None,
    left: bool = False,
) -> None:
    """Draw one legend above the panels.

    Args:
        figure: the figure.
        panels: the panels whose lines are named. A name that occurs in several panels is shown once.
        names: the names in order. Names without a line are ignored. By default, all names.
        columns: maximum number of columns.
        title: title of the legend.
        left: align the legend left. On a phone, only the left part of a figure with several panels is visible at first.
    """
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = [name for name in (handles if names is None else names) if name in handles]
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="outside upper left" if left else "outside upper center",
        ncols=max(1, min(columns, len(order))),
        frameon=False,
        title=title,
    )


def without_ticks(axes: Axes) -> None:
    """Remove the ticks and the grid of an axes that shows an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


def size_ticks(axes: Axes, sizes: Sequence[str]) -> None:
    """Label the x axis with image sizes."""
    axes.set_xticks(np.arange(len(sizes)), sizes)
    axes.set_xlabel("size, pixels")
    axes.grid(visible=False, axis="x")


def side_by_side(
    axes: Axes, number: int, count: int, table: pd.DataFrame, colour: Any, label: str | None = None
) -> None:
    """Draw the bars of one law next to the bars of the other laws, with intervals.

    Args:
        axes: where to draw.
        number: position of the law, from 0.
        count: number of laws.
        table: a row per size; the columns are the value and the ends of its interval.
        colour: colour of the bars.
        label: name in the legend.
    """
    width = 0.8 / count
    x = np.arange(len(table)) + width * (number - (count - 1) / 2)
    middle, low, high = (table[name] for name in table)
    axes.bar(x, middle, width, color=colour, label=label)
    # Not yerr: the interval of a removed fraction need not contain its estimate.
    axes.vlines(x, low, high, color="0.15", linewidth=1.2)
    for end in (low, high):
        axes.hlines(end, x - width / 6, x + width / 6, color="0.15", linewidth=1.2)


def half_widths(value: pd.Series, low: pd.Series, high: pd.Series) -> Float[np.ndarray, "ends values"]:
    """Return the error bars of values, shape (2, values). Unknown ends give a bar of length 0.

    Examples:
        >>> half_widths(pd.Series([1.0]), pd.Series([0.75]), pd.Series([float("nan")])).tolist()
        [[0.25], [0.0]]
    """
    return np.asarray(np.nan_to_num(np.clip([value - low, high - value], 0, None)))


def mark_bounds(axes: Axes, values: pd.Series, places: pd.Series, bounds: pd.Series, colour: Any) -> None:
    """Draw an arrow at each value that is only a bound. It points to where the value may be.

    >>> axes = Figure().subplots()
    >>> mark_bounds(axes, pd.Series([6.0, 1.0]), pd.Series([0, 1]), pd.Series(["at least", ""]), "k")
    >>> [line.get_marker() for line in axes.lines]
    ['>']
    """
    for bound, marker in {"at most": "<", "at least": ">"}.items():
        own = bounds == bound
        if own.any():
            label = f"_{bound}"  # not in the legend
            axes.plot(values[own], places[own], marker, color=colour, markersize=8, fillstyle="none", label=label)


def of_size(frame: pd.DataFrame, size: Size) -> pd.DataFrame:
    """Return the rows of a table for one (height, width).

    Examples:
        >>> of_size(pd.DataFrame({"height": [64, 128], "width": [64, 128]}), (64, 64)).index.tolist()
        [0]
    """
    return frame[(frame["height"] == size[0]) & (frame["width"] == size[1])]


def sizes_in(frame: pd.DataFrame) -> list[Size]:
    """Return the (height, width) pairs of a table, from the smallest area to the largest.

    Examples:
        >>> sizes_in(pd.DataFrame({"height": [128, 64], "width": [128, 96]}))
        [(64, 96), (128, 128)]
    """
    pairs = frame[["height", "width"]].drop_duplicates().itertuples(index=False)
    return sorted(((int(h), int(w)) for h, w in pairs), key=lambda size: size[0] * size[1])
