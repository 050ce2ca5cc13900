"""Show a result: a figure on any axes, and a table with the figure for a notebook."""

from __future__ import annotations

import hashlib
import html as escaping
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.attention import Captured
from entropy_probe.errors import InputError
from entropy_probe.estimation import Fit
from entropy_probe.evaluation import Outcome
from entropy_probe.laws import HeadEntropy, MeasuredHeads, MeasuredSteps, ScalingLaw
from entropy_probe.laws.catalogue import own_law
from entropy_probe.models import format_size
from entropy_probe.plots.drift import draw_drift
from entropy_probe.plots.entropy_growth import draw_law
from entropy_probe.plots.layers import draw_layers
from entropy_probe.plots.panel import FORMATS, WIDTHS, Panel, Width, figure_bytes, one_of, print_theme
from entropy_probe.plots.scale_factors import draw_factors, draw_head_factors, draw_step_factors
from entropy_probe.plots.svg import inline_svg
from entropy_probe.plots.tables import captured_table, drift_table, entropy_table, factor_table, fit_table
from entropy_probe.plots.theme import page_theme, row_size, theme
from entropy_probe.plots.timesteps import draw_timesteps
from entropy_probe.runs import Sweep, write_atomically


@dataclass(frozen=True)
class View:
    """A table and a figure of a result.

    Attributes:
        title: title of the table.
        table: the table, rounded for people.
        draw: draws the figure on axes and returns its data.
        legend: title of the legend.
        rows: number of rows if the y axis has one row per layer; 0 for other axes.
    """

    title: str
    table: pd.DataFrame
    draw: Callable[[Axes], pd.DataFrame]
    legend: str | None = None
    rows: int = 0

    @property
    def height(self) -> float:
        """Height of the figure, inches."""
        return 1.2 + row_size(self.rows)[0] * self.rows if self.rows else 3.8

    def draw_with_legend(self, axes: Axes) -> pd.DataFrame:
        """Draw the figure and its legend on axes, and return the data of the figure."""
        data = self.draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(title=self.legend, fontsize=7.5, title_fontsize=7.5, edgecolor="none")
        return data


def view(result: Captured | Sweep | Fit | ScalingLaw | Outcome) -> View:
    """Return the view of a result.

    Raises:
        InputError: if the result is empty.
    """
    match result:
        case Captured():
            table = captured_table(result)
            if not len(table):
                raise InputError("nothing was captured: run the model inside `with ep.capture(model) as captured`")
            draw = partial(draw_layers, captured=result)
            return View("Attention entropy of every layer", table, draw, rows=len(table))
        case Sweep():
            frame, law = result.frame(), result.grid.laws[0].name
            trained = result.manifest.training_size
            model = Path(result.manifest.model).name
            title = f"{len(result.grid)} images of {model}, trained at {format_size(trained)} pixels"
            draw = partial(draw_timesteps, frame=frame, training_size=trained, law=law)
            return View(title, entropy_table(frame), draw, "size, pixels")
        case Fit():
            return View("H = a + b ln N", fit_table(result), partial(draw_law, fit=result))
        case Outcome():
            table = drift_table(result)
            table = table[table["level"] == "layer"].drop(columns="level")
            return View("Drift of the entropy, by layer", table, partial(draw_drift, outcome=result))
        case _:
            return _law_view(result)


def _law_view(law: ScalingLaw) -> View:
    """Return the view of a law. The figure shows g by layer, by head, or by noise level, depending on the law."""
    title, table, inner = f"Scaling law “{law.name}”: g at N/T", factor_table(law), own_law(law)
    if isinstance(inner, MeasuredSteps):
        return View(title, table, partial(draw_step_factors, law=inner))
    if isinstance(inner, MeasuredHeads | HeadEntropy):
        layers = table["layer"].nunique()
        return View(title, table, partial(draw_head_factors, law=inner), rows=layers)
    return View(title, table, partial(draw_factors, law=law))


def plot(result: Any, ax: Axes | None = None) -> Axes:
    """Draw the figure of a result; see `Viewed.plot`."""
    shown = view(result)
    if ax is None:
        # Outside the theme: the first figure of a notebook turns on the interactive mode of pyplot, and leaving the
        # theme would turn it off again.
        figure = pyplot.figure(figsize=(7, shown.height), layout="constrained")
    with theme():
        axes: Axes = figure.subplots() if ax is None else ax
        shown.draw_with_legend(axes)
    return axes


def save_plot(result: Any, path: str | Path, width: Width) -> None:
    """Write the main figure of a result; see `Viewed.save_plot`."""
    target = Path(path)
    format = one_of("the ending of the file", target.suffix[1:].lower(), FORMATS)
    inches = WIDTHS[one_of("width", width, tuple(WIDTHS))]
    shown = view(result)
    with print_theme():
        figure, _ = Panel(target.stem, shown.draw, rows=shown.rows, legend=shown.legend)(inches)
        write_atomically(target, figure_bytes(figure, format))


def html(result: Any) -> str:
    """Return the table and the figure of a result as HTML, in the colours and the width of the notebook."""
    try:
        shown = view(result)
    except InputError as error:
        return f"<p>{escaping.escape(str(error))}</p>"
    table = shown.table.to_html(index=False, border=0, escape=True)
    # A notebook has several views, and ids on a page must be unique.
    prefix = f"v{hashlib.sha1((shown.title + table).encode()).hexdigest()[:8]}-"
    with page_theme():
        figure = Figure(figsize=(7, shown.height), layout="constrained")
        shown.draw_with_legend(figure.subplots())
        svg = inline_svg(figure, prefix, shown.title, style="max-width: 100%; height: auto")
    return (
        f'<div style="max-width: 48em"><p><b>{escaping.escape(shown.title)}</b></p>'
        f'<div style="overflow: auto; max-height: 20em">{table}</div>{svg}</div>'
    )
