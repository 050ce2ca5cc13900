"""Plot a comparison of entropy profiles."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from entropy_probe.baselines import ProfileComparison
from entropy_probe.models import Size, format_size, short_name
from entropy_probe.plots.figures import INTERVAL, PALETTE, theme


def figure(comparison: ProfileComparison) -> Figure:
    """A panel per size: the change of every head with its 95 % interval, layers in network order, coloured if moved."""
    heads = comparison.heads
    layers = [name for name in comparison.baseline.entropy.index.unique("layer") if name in set(heads["layer"])]
    sizes: list[Size] = sorted(
        {(int(h), int(w)) for h, w in heads[["height", "width"]].to_numpy()}, key=lambda s: s[0] * s[1]
    )
    vermilion = sns.color_palette(PALETTE)[3]
    with theme():
        made = Figure(figsize=(2 + 4 * len(sizes), min(40.0, 1.6 + 0.22 * len(layers))), layout="constrained")
        panels = made.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for axes, (height, width) in zip(panels, sizes, strict=True):
            here = heads[(heads["height"] == height) & (heads["width"] == width)]
            spread = (here["head"] + 1) / (here.groupby("layer")["head"].transform("max") + 2) - 0.5
            y = here["layer"].map(layers.index) + 0.8 * spread
            for chosen, colour in ((~here["moved"], "0.55"), (here["moved"], vermilion)):
                own = here[chosen]
                axes.errorbar(
                    own["difference"],
                    y[chosen],
                    xerr=INTERVAL * own["se"],
                    fmt="o",
                    markersize=3,
                    linewidth=0.8,
                    color=colour,
                )
            axes.axvline(0, color="0.3", linewidth=0.8)
            axes.set_title(f"at {format_size((height, width))} px: {here['moved'].sum()} of {len(here)} moved")
            axes.set_xlabel("change of the mean entropy, nats")
        panels[0].set_yticks(np.arange(len(layers)), [short_name(name) for name in layers], fontsize=7)
        panels[0].invert_yaxis()
    return made
