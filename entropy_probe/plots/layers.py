"""Plot the attention entropy of layers and heads."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from entropy_probe.attention import Captured, visual
from entropy_probe.estimation.intervals import t_quantile
from entropy_probe.models import Size, format_size, short_name
from entropy_probe.plots.panels import Plot, of_size, sizes_in
from entropy_probe.plots.theme import PALETTE, row_size


def draw_layers(axes: Axes, captured: Captured) -> pd.DataFrame:
    """Draw the entropy of every layer from the input (top) to the output: the heads, their mean, and the maximum ln N.

    Returns:
        Columns `layer`, `kind`, `head` (NaN for the mean of the layer), `entropy`, `low`, `high` (95 % interval over
        the images) and `maximum` (ln N of the layer), all in nats.

    >>> import entropy_probe as ep
    >>> pipeline = ep.reference.load()
    >>> with ep.capture(pipeline) as captured:
    ...     images = pipeline("noto dog", height=32, width=32, num_inference_steps=1)
    >>> sorted(draw_layers(Figure().subplots(), captured)["kind"].unique())
    ['cross', 'self']
    """
    frame = captured.frame()
    frame = frame[frame["scale_factor"] == 1.0]
    order = {layer: place for place, layer in enumerate(dict.fromkeys(frame["layer"]))}
    heads = frame.groupby(["layer", "kind", "head"], sort=False)["entropy"].mean().reset_index()
    for colour, (kind, own) in zip(sns.color_palette(PALETTE), heads.groupby("kind", sort=False), strict=False):
        axes.scatter(own["entropy"], own["layer"].map(order), s=14, alpha=0.6, color=colour, label=f"head ({kind})")
    table = captured.summary()
    error = table["entropy_se"] * (table["images"] - 1).map(t_quantile)
    means = table[["layer", "kind", "entropy"]].assign(low=table["entropy"] - error, high=table["entropy"] + error)
    style: dict[str, Any] = {"fmt": "D", "color": "black", "markersize": 4, "label": "mean of the layer"}
    axes.errorbar(means["entropy"], means["layer"].map(order), xerr=error, **style)
    most = np.log(frame.groupby("layer", sort=False)["key_tokens"].max())
    axes.plot(most, most.index.map(order), "|", color="0.5", markersize=9, label="maximum, ln N")
    axes.set_yticks(list(order.values()), [short_name(name) for name in order], fontsize=row_size(len(order))[1])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlabel("entropy, nats")
    data = pd.concat([heads, means], ignore_index=True)
    return data.assign(maximum=data["layer"].map(most))


def layers_and_heads(frame: pd.DataFrame, training_size: Size) -> Plot:
    """Plot layers by heads, original model: the entropy at the training size, and its drift at the largest size.

    Args:
        frame: the measurements of a sweep.
        training_size: (height, width) in pixels.

    Returns:
        The figure, and its data: `layer`, `head`, `entropy` at the training size, and `drift` at the largest size
        (both in nats). There is no `drift` if the training size is the only one.

    >>> import entropy_probe as ep
    >>> sizes = [(32, 32), (64, 64)]  # 64 is the training size
    >>> swept = ep.sweep(ep.reference.load(), prompts=["noto dog"], sizes=sizes, steps=1, progress=False)
    >>> figure, data = layers_and_heads(swept.frame(), (64, 64))
    >>> list(data)
    ['layer', 'head', 'entropy', 'drift']
    """
    others = _other_sizes(frame, training_size)
    rows = frame["layer"].nunique()
    figure = Figure(figsize=(9 if others else 5.5, row_size(rows)[0] * rows + 1.6), layout="constrained")
    panels = figure.subplots(1, 2 if others else 1, sharey=True, squeeze=False)[0]
    data = draw_heads(panels[0], frame, training_size)
    if others:
        data = data.merge(draw_head_drift(panels[1], frame, training_size), on=["layer", "head"], how="left")
    return figure, data


def draw_heads(axes: Axes, frame: pd.DataFrame, training_size: Size) -> pd.DataFrame:
    """Draw the entropy of each head (columns) of each layer (rows) of the original model at the training size.

    Cells of heads that a layer does not have are hatched.

    Returns:
        Columns `layer`, `head`, `entropy` (nats).

    >>> rows = [{"layer": "mid", "head": head, "entropy": 3.0 + head, "height": 64, "width": 64} for head in (0, 1)]
    >>> frame = pd.DataFrame(rows).assign(law="original", kind="self", axes="spatial")
    >>> draw_heads(Figure().subplots(), frame, (64, 64))["entropy"].tolist()
    [3.0, 4.0]
    """
    table = _heads(frame, training_size)
    _draw_heat_map(axes, table, "viridis", "entropy, nats")
    axes.set_title(f"entropy at the training size, {format_size(training_size)}", fontsize=9)
    return _by_head(table, "entropy")


def draw_head_drift(axes: Axes, frame: pd.DataFrame, training_size: Size) -> pd.DataFrame:
    """Draw the drift of each head of the original model from the training size to the largest other size.

    Equal colours are equal magnitudes, and the colour scale ends at the smallest and at the largest drift.

    Returns:
        Columns `layer`, `head`, `drift` (nats).

    >>> rows = [{"layer": "mid", "head": 0, "entropy": n / 64, "height": n, "width": n} for n in (64, 128)]
    >>> frame = pd.DataFrame(rows).assign(law="original", kind="self", axes="spatial")
    >>> draw_head_drift(Figure().subplots(), frame, (64, 64))["drift"].tolist()
    [1.0]
    """
    size = _other_sizes(frame, training_size)[-1]
    trained = _heads(frame, training_size)
    drift = _heads(frame, size).reindex_like(trained) - trained
    low, high = min(0.0, float(np.nanmin(drift))), max(0.0, float(np.nanmax(drift)))
    reach = max(-low, high) or 1.0
    ends = np.linspace(0.5 + low / reach / 2, 0.5 + high / reach / 2, 256)  # of the part of the scale that occurs
    colours = mpl.colors.ListedColormap(sns.color_palette("vlag", as_cmap=True)(ends))
    _draw_heat_map(axes, drift, colours, "H(N) − H(T), nats", vmin=low, vmax=high if high > low else 1.0)
    axes.set_title(f"its drift at {format_size(size)}", fontsize=9)
    return _by_head(drift, "drift")


def _other_sizes(frame: pd.DataFrame, training_size: Size) -> list[Size]:
    return [size for size in sizes_in(visual(frame[frame["law"] == "original"])) if size != training_size]


def _heads(frame: pd.DataFrame, size: Size) -> pd.DataFrame:
    """Return the mean entropy of the original model at a size: layers in network order by heads."""
    original = visual(frame[frame["law"] == "original"])
    table = of_size(original, size).groupby(["layer", "head"], sort=False)["entropy"].mean()
    return table.unstack("head").sort_index(axis=1).reindex(dict.fromkeys(original["layer"]))


def _draw_heat_map(axes: Axes, table: pd.DataFrame, colours: Any, label: str, **options: Any) -> None:
    """Draw layers by heads. Missing cells are hatched."""
    rows, columns = table.shape
    hatched: dict[str, Any] = {"hatch": "////", "fill": False, "edgecolor": "0.6", "linewidth": 0, "zorder": 0}
    if table.isna().to_numpy().any():
        axes.add_patch(Rectangle((0, 0), columns, rows, **hatched))
    sns.heatmap(
        table,
        ax=axes,
        cmap=colours,
        cbar_kws={"label": label},
        xticklabels=True if columns <= 12 else 5,
        yticklabels=[short_name(str(name)) for name in table.index],
        linewidths=0.4,
        linecolor="0.5",
        **options,
    )
    axes.grid(visible=False)  # the grid would be visible in layers with fewer heads
    axes.set_ylabel("")
    axes.set_xlabel("head")
    axes.tick_params(axis="y", labelrotation=0, labelsize=row_size(rows)[1])
    axes.tick_params(axis="x", labelrotation=0)


def _by_head(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table of layers by heads as one row per layer and head."""
    return table.stack().rename(name).reset_index()
