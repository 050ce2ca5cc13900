"""Plot the attention entropy against the timestep."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_probe.attention import visual
from entropy_probe.estimation.intervals import half_width
from entropy_probe.models import Size, format_size
from entropy_probe.plots.panels import Plot, is_first_column, legend_above, of_size, panel_grid, sizes_in
from entropy_probe.plots.theme import shades

TARGET = "target: original, training size"
LABEL = "entropy, nats (mean over layers)"


def entropy_against_timestep(frame: pd.DataFrame, training_size: Size) -> Plot:
    """Plot a panel for each law: the mean entropy over the visual layers against the timestep, a line per size.

    Args:
        frame: the measurements of a sweep.
        training_size: (height, width) of the target line, pixels.

    Returns:
        The figure, and its data; see `timestep_means`.

    >>> rows = [{"height": n, "width": n, "timestep": t, "entropy": 3.0} for n in (32, 64) for t in (900, 100)]
    >>> frame = pd.DataFrame(rows).assign(law="original", prompt="cat", layer="mid", kind="self", axes="spatial")
    >>> figure, data = entropy_against_timestep(frame, (64, 64))
    >>> list(data)
    ['law', 'height', 'width', 'timestep', 'entropy', 'low', 'high']
    """
    data = timestep_means(frame)
    laws = list(dict.fromkeys(frame["law"]))
    figure, panels = panel_grid(len(laws), 3.3, 0.4, sharey=True)
    for axes, law in zip(panels, laws, strict=True):
        _draw_law(axes, data, training_size, law)
        axes.set_title(law)
        axes.set_ylabel(LABEL if is_first_column(axes) else "")
    names = [*map(format_size, sizes_in(frame)), TARGET]
    legend_above(figure, panels, names, columns=6, title="size, pixels")
    return figure, data


def draw_timesteps(axes: Axes, frame: pd.DataFrame, training_size: Size, law: str) -> pd.DataFrame:
    """Draw the panel of one law, and return its data; see `entropy_against_timestep`.

    The y axis has the same limits for every law. The data includes the target line.

    >>> rows = [{"height": n, "width": n, "timestep": t, "entropy": 3.0} for n in (32, 64) for t in (900, 100)]
    >>> frame = pd.DataFrame(rows).assign(law="original", prompt="cat", layer="mid", kind="self", axes="spatial")
    >>> from matplotlib.figure import Figure
    >>> draw_timesteps(Figure().subplots(), frame, (64, 64), "original")["timestep"].tolist()
    [100, 900, 100, 900]
    """
    data = timestep_means(frame)
    _draw_law(axes, data, training_size, law)
    values = data[["entropy", "low", "high"]].to_numpy()
    margin = 0.05 * (np.nanmax(values) - np.nanmin(values)) or 1.0
    axes.set_ylim(np.nanmin(values) - margin, np.nanmax(values) + margin)
    axes.set_title(law, fontsize=9)
    height, width = training_size
    target = (data["law"] == "original") & (data["height"] == height) & (data["width"] == width)
    return data[(data["law"] == law) | target].reset_index(drop=True)


def timestep_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute the mean entropy over the visual layers at each timestep.

    Every layer has the same weight, independent of its number of heads.

    Returns:
        Columns `law`, `height`, `width`, `timestep`, `entropy` (nats), `low`, `high` (95 % interval over the prompts;
        NaN with a single prompt).
    """
    keys = ["law", "height", "width", "prompt", "timestep"]
    by_layer = visual(frame).groupby([*keys, "layer"], sort=False)["entropy"].mean()
    by_prompt = by_layer.groupby(keys, sort=False).mean()
    steps = by_prompt.groupby(level=["law", "height", "width", "timestep"], sort=False)
    data = pd.DataFrame({"entropy": steps.mean(), "error": half_width(steps)}).reset_index()
    data = data.assign(low=data["entropy"] - data["error"], high=data["entropy"] + data["error"])
    order = {law: number for number, law in enumerate(dict.fromkeys(frame["law"]))}
    places = data.assign(law=data["law"].map(order), area=data["height"] * data["width"])
    by = ["law", "area", "height", "width", "timestep"]
    return data.drop(columns="error").loc[places.sort_values(by).index].reset_index(drop=True)


def _draw_law(axes: Axes, data: pd.DataFrame, training_size: Size, law: str) -> None:
    """Draw a line and a band for each size, and the target line."""
    sizes = sizes_in(data)
    colours = dict(zip(sizes, shades(len(sizes)), strict=True))
    for size in sizes:
        own = of_size(data[data["law"] == law], size)
        if own.empty:
            continue
        axes.plot(own["timestep"], own["entropy"], color=colours[size], label=format_size(size), linewidth=1.5)
        axes.fill_between(own["timestep"], own["low"], own["high"], color=colours[size], alpha=0.2, linewidth=0)
    target = of_size(data[data["law"] == "original"], training_size)
    if not target.empty:
        axes.plot(target["timestep"], target["entropy"], color="black", linestyle="--", linewidth=1, label=TARGET)
    axes.invert_xaxis()
    axes.set_xlabel("timestep (noise to image)")
    axes.set_ylabel(LABEL)
