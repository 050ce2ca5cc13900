"""The style of every figure: colours, fonts, and the sizes of rows and intervals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns

PALETTE = "colorblind"

CLEAR: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.framealpha": 0,
    "grid.color": "0.5",
    "grid.alpha": 0.3,
    "axes.edgecolor": "0.5",
    "patch.edgecolor": "none",
}
"""Settings for figures on a page with a light or a dark background."""

INK = ("#262626", "#000000")
"""The colours of text and black marks in `theme`. On a page, they become the text colour of the page."""


def shades(count: int) -> list[tuple[float, float, float]]:
    """Return colours in a sequence that are readable on a light and on a dark background.

    Examples:
        >>> len(shades(3)), len(set(shades(3)))
        (3, 3)
    """
    return [mpl.colormaps["viridis"](place)[:3] for place in np.linspace(0.32, 0.88, count)]


@contextmanager
def theme() -> Iterator[None]:
    """Apply the style of all figures inside the context. The same data gives the same SVG text.

    Examples:
        >>> with theme():
        ...     mpl.rcParams["svg.fonttype"]
        'none'
    """
    style = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.85)}
    # Layer names may contain dollar signs: matplotlib must not read them as formulas.
    with mpl.rc_context({**style, "svg.hashsalt": "entropy-probe", "svg.fonttype": "none", "text.parse_math": False}):
        yield


@contextmanager
def page_theme() -> Iterator[None]:
    """Apply `theme` with a transparent background, for figures on a page.

    Examples:
        >>> with page_theme():
        ...     mpl.rcParams["figure.facecolor"]
        'none'
    """
    with theme(), mpl.rc_context(CLEAR):
        yield


def row_size(count: int) -> tuple[float, float]:
    """Return the height (inches) and the label size (points) of each of `count` rows. A large model has 70 layers.

    Examples:
        >>> row_size(10), row_size(70)
        ((0.27, 7.5), (0.16, 6.0))
    """
    return (0.27, 7.5) if count <= 30 else (0.16, 6.0)
