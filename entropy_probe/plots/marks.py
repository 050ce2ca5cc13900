"""Find the numbers that a figure shows, and where they are: for the tooltips and the description of a figure.

The positions are known only after matplotlib has laid out the figure, so they are read from its artists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_rgba
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter
from matplotlib.transforms import Bbox

Number = float | np.floating[Any]
Interval = tuple[float, float]

REACH = 4.0
"""Half of the side of the tooltip area of a dot, in points (1/72 inch)."""


@dataclass(frozen=True)
class Mark:
    """A number that a figure shows.

    Attributes:
        panel: title of the axes.
        series: name of the line, dots or bars.
        x_label: label of the x axis.
        x: position on the x axis; a name if the axis has names.
        y_label: label of the y axis.
        y: position on the y axis; a name if the axis has names.
        box: area of the tooltip, in inches from the lower left corner.
        low: lower end of the interval around the number; NaN without an interval.
        high: upper end.
        value_label: label of the colour scale.
        value: value that the colour represents; NaN without a colour scale.
    """

    panel: str
    series: str
    x_label: str
    x: float | str
    y_label: str
    y: float | str
    box: Bbox
    low: float = np.nan
    high: float = np.nan
    value_label: str = ""
    value: float = np.nan

    def text(self) -> str:
        """Return the text of the tooltip: panel and series, then a line per axis."""
        lines = [": ".join(part for part in (self.panel, self.series) if part)]
        for label, shown in ((self.x_label, self.x), (self.y_label, self.y), (self.value_label, self.value)):
            if isinstance(shown, str) or not np.isnan(shown):
                lines.append(": ".join(part for part in (label, _shown(shown)) if part))
        if not np.isnan(self.low):
            lines[-1] += f" [{self.low:.4g}, {self.high:.4g}]"
        return "\n".join(line for line in lines if line)


def marks(figure: Figure) -> list[Mark]:
    """Return the numbers that a figure shows, after laying it out.

    Artists without a name and without a colour scale are decoration, and are ignored.

    Examples:
        >>> figure = Figure()
        >>> _ = figure.subplots().plot([1, 2], [3, 4], label="a")
        >>> [(mark.series, mark.x, mark.y) for mark in marks(figure)]
        [('a', 1.0, 3.0), ('a', 2.0, 4.0)]
    """
    FigureCanvasSVG(figure)  # the layout of an SVG file, so that positions are exact
    figure.set_dpi(72)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep this layout
    found: list[Mark] = []
    for axes in figure.axes:
        if axes.get_visible() and axes.get_label() != "<colorbar>":
            # Artists with markers come last, so that their tooltips are on top.
            found += [*_meshes(axes), *_lines(axes, marked=False)]
            found += [*_bars(axes), *_scatters(axes), *_errorbars(axes), *_lines(axes, marked=True)]
    return found


def description(shown: Sequence[Mark]) -> str:
    """Describe a figure in words: its panels and axes, and the range of each line.

    Examples:
        >>> figure = Figure()
        >>> axes = figure.subplots()
        >>> axes.set(title="layers", xlabel="ln N", ylabel="nats")
        [Text(0.5, 1.0, 'layers'), Text(0.5, 0, 'ln N'), Text(0, 0.5, 'nats')]
        >>> _ = axes.plot([1, 2], [3, 4], label="mid")
        >>> description(marks(figure))
        'layers: nats against ln N: mid 3 to 4.'
    """
    sentences = []
    for panel in dict.fromkeys(mark.panel for mark in shown):
        own = [mark for mark in shown if mark.panel == panel]
        axes = " against ".join(part for part in (own[0].y_label, own[0].x_label) if part)
        lines = []
        for series in list(dict.fromkeys(mark.series for mark in own))[:12]:
            values = [_extent(mark) for mark in own if mark.series == series]
            known = [value for value in values if not np.isnan(value)]
            if known:
                extent = f"{min(known):.3g} to {max(known):.3g}" if len(known) > 1 else f"{known[0]:.3g}"
                lines.append(f"{series} {extent}".strip())
        sentences.append(": ".join(part for part in (panel, axes, ", ".join(lines)) if part) + ".")
    return " ".join(sentences[:12])


def _extent(mark: Mark) -> float:
    if not np.isnan(mark.value):
        return mark.value
    return next((float(shown) for shown in (mark.y, mark.x) if not isinstance(shown, str)), np.nan)


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _mark(axes: Axes, series: str, x: float, y: float, box: Bbox | None = None, **more: Any) -> Mark:
    if box is None:
        (across, up) = axes.transData.transform((x, y)) / axes.figure.dpi
        reach = REACH / 72
        box = Bbox.from_extents(across - reach, up - reach, across + reach, up + reach)
    return Mark(
        axes.get_title().replace("\n", ", "),
        series,
        _label(axes, "x"),
        _place(axes.xaxis, x),
        _label(axes, "y"),
        _place(axes.yaxis, y),
        box,
        **more,
    )


def _label(axes: Axes, which: str) -> str:
    """Return the label of an axis, of an axis that it is shared with, or of the figure."""
    figure: Any = axes.figure
    shared = getattr(axes, f"get_shared_{which}_axes")().get_siblings(axes)
    own = [getattr(one, f"get_{which}label")() for one in (axes, *shared)]
    label = next((label for label in [*own, getattr(figure, f"get_sup{which}label")()] if label), "")
    return " ".join(str(label).split())


def _place(axis: Axis, value: float) -> float | str:
    """Return a value on an axis. On an axis of names, return the nearest name, because bars surround their tick."""
    formatter = axis.get_major_formatter()
    # `set_ticks(positions, names)` stores the names in a function.
    named = isinstance(axis.get_major_locator(), FixedLocator) and isinstance(formatter, FixedFormatter | FuncFormatter)
    if not named:
        return float(value)
    ticks = np.asarray(axis.get_majorticklocs())
    nearest = int(np.argmin(np.abs(ticks - value))) if len(ticks) else 0
    if len(ticks) and abs(ticks[nearest] - value) < 0.5:
        return str(formatter(ticks[nearest], nearest))
    return str(int(value))  # a crowded axis does not name every tick


def _name(label: object) -> str:
    """Return the name of an artist. A leading underscore only hides it from the legend."""
    text = str(label)
    return "" if text.startswith(("_child", "_nolegend_", "_container")) else text.removeprefix("_")


def _errorbars(axes: Axes) -> Iterator[Mark]:
    for container in axes.containers:
        if not isinstance(container, ErrorbarContainer) or container.lines[0] is None:
            continue
        x, y = (np.asarray(values, float) for values in container.lines[0].get_data())
        paths = [path for bar in container.lines[2][:1] for path in bar.get_paths()]
        bars = [np.asarray(path.vertices, float) for path in paths]  # NaN for unknown ends
        along = 0 if container.has_xerr else 1
        for at in range(len(x)):
            low, high = sorted(bars[at][:, along]) if bars else (np.nan, np.nan)
            yield _mark(axes, _name(container.get_label()), x[at], y[at], low=float(low), high=float(high))


def _bars(axes: Axes) -> Iterator[Mark]:
    segments = [one for lines in axes.collections if isinstance(lines, LineCollection) for one in lines.get_segments()]
    intervals = {round(float(a[0]), 6): (float(a[1]), float(b[1])) for a, b in filter(len, segments) if a[0] == b[0]}
    to_inches = axes.figure.dpi_scale_trans.inverted()
    for container in axes.containers:
        for bar in container if isinstance(container, BarContainer) else ():
            if not np.isfinite(bar.get_height()):
                continue
            x = bar.get_x() + bar.get_width() / 2
            low, high = intervals.get(round(x, 6), (np.nan, np.nan))
            box = bar.get_window_extent().transformed(to_inches)
            yield _mark(axes, _name(container.get_label()), x, bar.get_height(), box, low=low, high=high)


def _lines(axes: Axes, marked: bool) -> Iterator[Mark]:
    for line in axes.lines:
        series = _name(line.get_label())
        if not series or line.get_transform() != axes.transData:  # a reference line from edge to edge
            continue
        if (line.get_marker() != "None") != marked:
            continue
        band = _band(axes, line)
        for x, y in zip(*(np.asarray(values, float) for values in line.get_data()), strict=True):
            if np.isfinite(y):
                low, high = band.get(float(x), (np.nan, np.nan))
                yield _mark(axes, series, x, y, low=low, high=high)


def _band(axes: Axes, line: Line2D) -> dict[float, Interval]:
    """Return the interval at every x of a line: the band in its colour."""
    for band in axes.collections:
        if not isinstance(band, PolyCollection):
            continue
        if not np.allclose(to_rgba(line.get_color())[:3], np.asarray(band.get_facecolor())[0, :3]):
            continue
        edges: dict[float, list[float]] = {}
        for path in band.get_paths():  # none if every interval is unknown
            for x, y in np.asarray(path.vertices, float):
                edges.setdefault(float(x), []).append(float(y))
        return {x: (min(ys), max(ys)) for x, ys in edges.items()}
    return {}


def _scatters(axes: Axes) -> Iterator[Mark]:
    for dots in axes.collections:
        if not isinstance(dots, PathCollection):
            continue
        places = np.asarray(np.ma.filled(dots.get_offsets(), np.nan), float)
        colours = dots.get_array()
        values = np.full(len(places), np.nan) if colours is None else np.asarray(colours, float)
        for (x, y), value in zip(places, values, strict=True):
            yield _mark(axes, _name(dots.get_label()), x, y, value=float(value), value_label=_scale(dots))


def _meshes(axes: Axes) -> Iterator[Mark]:
    for mesh in axes.collections:
        if not isinstance(mesh, QuadMesh):
            continue
        grid = np.asarray(mesh.get_coordinates(), float)
        corners = (axes.transData.transform(grid.reshape(-1, 2)) / axes.figure.dpi).reshape(grid.shape)
        values: np.ndarray = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)
        for (row, column), value in np.ndenumerate(values.reshape(grid.shape[0] - 1, grid.shape[1] - 1)):
            if np.isfinite(value):
                box = Bbox([corners[row, column], corners[row + 1, column + 1]])
                more = {"value": float(value), "value_label": _scale(mesh)}
                yield _mark(axes, "", column + 0.5, row + 0.5, box, **more)


def _scale(coloured: Any) -> str:
    """Return the label of the colour scale of an artist."""
    return "" if coloured.colorbar is None else str(coloured.colorbar.ax.get_ylabel())
