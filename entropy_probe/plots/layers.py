"""Plot the attention entropy of layers and heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.attention import Captured, visual
from entropy_probe.estimation.intervals import t_quantile
from entropy_probe.models import Size, format_size, short_name
from entropy_probe.plots.panels import Plot, sizes_in
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
    original = visual(frame[frame["law"] == "original"])
    table = original.groupby(["height", "width", "layer", "head"], sort=False)["entropy"].mean()
    trained = table.loc[training_size].unstack("head").sort_index(axis=1)
    trained = trained.loc[list(dict.fromkeys(original["layer"]))]
    others = [size for size in sizes_in(original) if size != training_size]
    height, font = row_size(len(trained))
    figure = Figure(figsize=(9 if others else 5.5, height * len(trained) + 1.6), layout="constrained")
    panels = figure.subplots(1, 2 if others else 1, sharey=True, squeeze=False)[0]
    labels = {
        "xticklabels": True if trained.shape[1] <= 12 else 5,
        "yticklabels": [short_name(str(name)) for name in trained.index],
        "linewidths": 0.4,
        "linecolor": "0.5",
    }
    sns.heatmap(trained, ax=panels[0], cmap="viridis", cbar_kws={"label": "entropy, nats"}, **labels)
    panels[0].set_title(f"entropy at the training size, {format_size(training_size)}", fontsize=9)
    data = _by_head(trained, "entropy")
    if others:
        drift = table.loc[others[-1]].unstack("head").reindex_like(trained) - trained
        limit = float(np.nanmax(np.abs(drift.to_numpy())))
        bar = {"label": "H(N) − H(T), nats"}
        sns.heatmap(drift, ax=panels[1], cmap="vlag", vmin=-limit, vmax=limit, cbar_kws=bar, **labels)
        panels[1].set_title(f"its drift at {format_size(others[-1])}", fontsize=9)
        data = data.merge(_by_head(drift, "drift"), on=["layer", "head"], how="left")
    for axes in panels:
        axes.grid(visible=False)  # the grid would be visible in layers with fewer heads
        axes.set_ylabel("")
        axes.set_xlabel("head")
        axes.tick_params(axis="y", labelrotation=0, labelsize=font)
        axes.tick_params(axis="x", labelrotation=0)
    return figure, data


def _by_head(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table of layers by heads as one row per layer and head."""
    return table.stack().rename(name).reset_index()
