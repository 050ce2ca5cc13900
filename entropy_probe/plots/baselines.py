"""Plot a comparison of entropy profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.baselines import ProfileComparison
from entropy_probe.models import format_size, short_name
from entropy_probe.plots.panels import Plot, of_size, sizes_in
from entropy_probe.plots.theme import PALETTE, theme


def profile_changes(comparison: ProfileComparison) -> Plot:
    """Plot the change of every head with its 95 % interval, a panel per size. Heads that moved are coloured.

    Layers are in network order.

    Returns:
        The figure, and its data: the table `ProfileComparison.heads`, with `half_width` of the intervals (nats).

    >>> import entropy_probe as ep
    >>> from entropy_probe.baselines import compare, profile
    >>> before = profile(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], seeds=range(8), steps=1)
    >>> figure, data = profile_changes(compare(before, before))
    >>> bool(data["moved"].any())
    False
    """
    heads = comparison.heads.assign(half_width=comparison.half_width())
    layers = [name for name in comparison.baseline.entropy.index.unique("layer") if name in set(heads["layer"])]
    sizes = sizes_in(heads)
    with theme():
        made = Figure(figsize=(2 + 4 * len(sizes), min(40.0, 1.6 + 0.22 * len(layers))), layout="constrained")
        panels = made.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for axes, size in zip(panels, sizes, strict=True):
            here = of_size(heads, size)
            _draw_heads(axes, here, layers)
            axes.set_title(f"at {format_size(size)} px: {here['moved'].sum()} of {len(here)} moved")
        panels[0].set_yticks(np.arange(len(layers)), [short_name(name) for name in layers], fontsize=7)
        panels[0].invert_yaxis()
    return made, heads


def figure(comparison: ProfileComparison) -> Figure:
    """Return only the figure of `profile_changes`, as `entropy_probe.regression.figure` did in 0.1.0."""
    return profile_changes(comparison)[0]


def _draw_heads(axes: Axes, heads: pd.DataFrame, layers: list[str]) -> None:
    """Draw the heads of one size. The heads of a layer share the height of its row."""
    spread = (heads["head"] + 1) / (heads.groupby("layer")["head"].transform("max") + 2) - 0.5
    y = heads["layer"].map(layers.index) + 0.8 * spread
    style: dict[str, Any] = {"fmt": "o", "markersize": 3, "linewidth": 0.8}
    for chosen, colour in ((~heads["moved"], "0.55"), (heads["moved"], sns.color_palette(PALETTE)[3])):
        own = heads[chosen]
        axes.errorbar(own["difference"], y[chosen], xerr=own["half_width"], color=colour, **style)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("change of the mean entropy, nats")
