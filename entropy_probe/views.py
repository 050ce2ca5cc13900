"""What a result shows of itself; how it is drawn is known to `entropy_probe.report.views` alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Viewed:
    """A result that a notebook shows as a table and a figure."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the main figure of this result.

        Args:
            ax: the matplotlib axes to draw on; new ones, of a pyplot figure, if none are given.

        Raises:
            InputError: if the result holds nothing to draw.
        """
        axes: Axes = _report_views().plot(self, ax)
        return axes

    def _repr_html_(self) -> str:
        text: str = _report_views().html(self)
        return text


def _report_views() -> Any:
    # By name and only when something is drawn: `report` stands above every result, and matplotlib takes its time.
    return importlib.import_module("entropy_probe.report.views")
