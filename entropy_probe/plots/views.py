"""What a result shows of itself: a figure on given axes, and a table with that figure for a notebook."""

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
from entropy_probe.estimation import Derivation, Fit
from entropy_probe.evaluation import Outcome
from entropy_probe.laws import ScalingLaw
from entropy_probe.models import format_size
from entropy_probe.plots import figures
from entropy_probe.plots.tables import captured_table, drift_table, entropy_table, factor_table, fit_table
from entropy_probe.runs import Sweep


@dataclass(frozen=True)
class View:
    """The two halves of a view: a table, and a figure with the title of its legend and its height in inches."""

    title: str
    table: pd.DataFrame
    draw: Callable[[Axes], None]
    legend: str | None = None
    height: float = 3.8

    def on(self, axes: Axes) -> None:
        """Draw the figure on axes of its own or of somebody else's."""
        self.draw(axes)
        axes.legend(title=self.legend, fontsize=7.5, title_fontsize=7.5, edgecolor="none")


def view(result: Captured | Sweep | Fit | ScalingLaw | Outcome) -> View:
    """What there is to show of a result.

    Raises:
        InputError: if it holds nothing yet.
    """
    match result:
        case Captured():
            table = captured_table(result)
            if not len(table):
                raise InputError("nothing was captured: run the model inside `with ep.capture(model) as captured`")
            height = 1.2 + figures.row(len(table))[0] * len(table)
            return View(
                "Attention entropy of every layer", table, partial(figures.draw_layers, captured=result), height=height
            )
        case Sweep():
            frame, law = result.frame(), result.grid.laws[0].name
            trained = result.manifest.training_size
            model = Path(result.manifest.model).name
            title = f"{len(result.grid)} images of {model}, trained at {format_size(trained)} pixels"
            draw = partial(figures.draw_timesteps, frame=frame, training_size=trained, law=law)
            return View(title, entropy_table(frame), draw, "size, pixels")
        case Derivation():
            return view(result.law)
        case Fit():
            return View("H = a + b ln N", fit_table(result), partial(figures.draw_law, fit=result))
        case Outcome():
            table = drift_table(result)
            table = table[table["level"] == "layer"].drop(columns="level")
            return View("Drift of the entropy, by layer", table, partial(figures.draw_drift, outcome=result))
        case _:
            title = f"Scaling law “{result.name}”: g at N/T"
            return View(title, factor_table(result), partial(figures.draw_factors, law=result))


def plot(result: Any, ax: Axes | None = None) -> Axes:
    """Draw the figure of a result; see `Viewed.plot`."""
    shown = view(result)
    if ax is None:
        # The first figure of a notebook turns pyplot's interactive mode on, which the theme would take back on leaving.
        figure = pyplot.figure(figsize=(7, shown.height), layout="constrained")
    with figures.theme():
        axes: Axes = figure.subplots() if ax is None else ax
        shown.on(axes)
    return axes


def html(result: Any) -> str:
    """The table and the figure of a result, for a notebook; they take its colours and its width."""
    try:
        shown = view(result)
    except InputError as error:
        return f"<p>{escaping.escape(str(error))}</p>"
    table = shown.table.to_html(index=False, border=0, escape=True)
    # Several views stand on one page, and an id may be there once.
    prefix = f"v{hashlib.sha1((shown.title + table).encode()).hexdigest()[:8]}-"
    with figures.page_theme():
        figure = Figure(figsize=(7, shown.height), layout="constrained")
        shown.on(figure.subplots())
        svg = figures.inline_svg(figure, prefix, shown.title)
    svg = svg.replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)
    return (
        f'<div style="max-width: 48em"><p><b>{escaping.escape(shown.title)}</b></p>'
        f'<div style="overflow: auto; max-height: 20em">{table}</div>{svg}</div>'
    )
