"""Add `plot()` and a notebook view to results. `entropy_probe.plots` provides both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from entropy_probe.errors import MissingLibraryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Views(Protocol):
    """Functions that draw any result."""

    def plot(self, result: Any, ax: Axes | None) -> Axes:
        """Draw the main figure of a result."""
        ...

    def save_plot(self, result: Any, path: str | Path, width: Literal["single", "double"]) -> None:
        """Write the main figure of a result to a file."""
        ...

    def html(self, result: Any) -> str:
        """Return the table and the figure of a result as HTML."""
        ...


_load: Callable[[], Views]


def register(load: Callable[[], Views]) -> None:
    """Set the function that imports the plots.

    It runs when a result is drawn for the first time, because matplotlib takes long to import.
    """
    global _load
    _load = load


class Viewed:
    """A result that a notebook shows as a table and a figure."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the main figure of this result.

        The functions of `entropy_probe.plots` also return the data of the figure.

        Args:
            ax: matplotlib axes to draw on. By default, new axes of a pyplot figure.

        Raises:
            InputError: if the result is empty.
        """
        return _load().plot(self, ax)

    def save_plot(self, path: str | Path, width: Literal["single", "double"] = "single") -> None:
        """Write the main figure for a paper: text of at least 7 points, and embedded fonts.

        Args:
            path: a file that ends in `.pdf`, `.png` or `.svg`. An existing file is replaced.
            width: `single` column (3.3 inches) or `double` column (6.9 inches).

        Raises:
            InputError: if the result is empty, or the width or the format of the file is unknown.
        """
        _load().save_plot(self, path, width)

    def _repr_html_(self) -> str | None:
        """Return the HTML for a notebook. Without matplotlib, return None: the notebook then shows the text."""
        try:
            views = _load()
        except MissingLibraryError:
            return None
        return views.html(self)
