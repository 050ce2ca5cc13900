"""A figure with one panel, for a page or for a publication."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from entropy_probe.errors import InputError
from entropy_probe.plots.panels import Plot, legend_above
from entropy_probe.plots.theme import row_size, theme

Choice = TypeVar("Choice", bound=str)
Width = Literal["single", "double"]
Format = Literal["pdf", "png", "svg"]

FORMATS: tuple[Format, ...] = ("pdf", "png", "svg")
"""File formats of figures."""

WIDTHS: dict[Width, float] = {"single": 3.3, "double": 6.9}
"""Widths of one and of two columns of a paper, inches."""

PAGE_WIDTH = 4.4
"""Inches. Text is readable if a phone shrinks the figure to the width of its screen."""

LETTER = 0.065
"""Width of a letter of a label, inches."""

MIN_FONT = 7.0
"""Points. Smaller text is hard to read in print."""


def one_of(name: str, value: str, known: Sequence[Choice]) -> Choice:
    """Return a value if it is one of the known ones.

    Raises:
        InputError: if it is not.

    >>> one_of("width", "wide", ["single", "double"])
    Traceback (most recent call last):
    entropy_probe.errors.InputError: width must be single or double, got 'wide'
    """
    if value not in known:
        raise InputError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, got {value!r:.100}")
    return next(one for one in known if one == value)


@dataclass(frozen=True)
class Panel:
    """A figure with one panel at any width.

    Attributes:
        name: name of its file, without the extension.
        draw: draws on axes and returns the data of the figure.
        rows: number of rows if the y axis has one row per layer; 0 for other axes.
        legend: title of the legend.
        row_height: minimum height of a row, inches.

    >>> panel = Panel("line", lambda axes: pd.DataFrame({"y": axes.plot([1, 2], label="a")[0].get_ydata()}))
    >>> float(panel(3.3)[0].get_figwidth())
    3.3
    """

    name: str
    draw: Callable[[Axes], pd.DataFrame]
    rows: int = 0
    legend: str | None = None
    row_height: float = 0.0

    def __call__(self, width: float = PAGE_WIDTH) -> Plot:
        """Return the figure at this width (inches), and its data."""
        row_height = max(self.row_height, row_size(self.rows)[0])
        height = row_height * self.rows + 1.5 if self.rows else 0.5 * width + 0.9
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        data = self.draw(axes)
        axes.set_xlabel(textwrap.fill(axes.get_xlabel(), int(0.6 * width / LETTER)))
        axes.set_ylabel(textwrap.fill(axes.get_ylabel(), int(0.55 * height / LETTER)))
        labels = axes.get_legend_handles_labels()[1]
        if axes.get_legend() is None and labels:
            legend_above(figure, [axes], columns=_columns(labels, width), title=self.legend)
        for text in figure.findobj(Text):
            text.set_fontsize(max(MIN_FONT, text.get_fontsize()))
        return figure, data


@contextmanager
def print_theme() -> Iterator[None]:
    """Apply the style for publications inside the context: 8 point text and embedded fonts.

    Examples:
        >>> with print_theme():
        ...     mpl.rcParams["pdf.fonttype"]  # TrueType, which publishers accept
        42
    """
    style: dict[Any, Any] = {
        **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize", "legend.title_fontsize"), 8.0),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7.5),
        "pdf.fonttype": 42,
        "svg.fonttype": "path",  # an SVG file cannot embed a font, so its text is drawn as outlines
        "savefig.dpi": 600,
        "lines.linewidth": 1.1,
        "lines.markersize": 3.5,
        "axes.linewidth": 0.6,
        "grid.linewidth": 0.5,
    }
    with theme(), mpl.rc_context(style):
        yield


def figure_bytes(figure: Figure, format: Format) -> bytes:
    """Return a figure as the content of a file, at its own size. The same figure gives the same bytes.

    >>> with print_theme():
    ...     figure_bytes(Figure(figsize=(1, 1)), "pdf")[:5]
    b'%PDF-'
    """
    names = {"pdf": "Creator", "svg": "Creator", "png": "Software"}
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, metadata={names[format]: "entropy-probe", **dates[format]})
    return buffer.getvalue()


def _columns(labels: list[str], width: float) -> int:
    """Return the number of legend columns that fit into a width (inches). A letter is about half a font size wide."""
    widths = [len(label) * 0.5 * 9 / 72 + 0.5 for label in labels]
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)  # matplotlib fills column after column
        if sum(max(widths[start : start + rows]) for start in range(0, len(widths), rows)) <= width:
            return columns
    return 1
