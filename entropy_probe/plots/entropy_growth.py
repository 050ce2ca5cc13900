"""Plot the attention entropy against the number of tokens."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_probe.estimation import POOLED, Fit
from entropy_probe.estimation.intervals import half_width
from entropy_probe.estimation.regression import FORMS, gaussian_entropy
from entropy_probe.models import short_name
from entropy_probe.plots.panels import Plot
from entropy_probe.plots.theme import PALETTE, shades

COLUMNS = ["layer", "form", "ln_tokens", "entropy", "low", "high"]


def entropy_over_layers(fit: Fit) -> Plot:
    """Plot the mean entropy of each layer against ln N (left), and the mean over the layers with each fitted form.

    Returns:
        The figure, and its data: `layer` (`POOLED` for the mean over the layers), `form` (`measured`, `log`, `power`,
        `linear`, `gaussian`), `ln_tokens`, `entropy` (nats), `low`, `high` (95 % interval, nats).

    >>> import entropy_probe as ep
    >>> sizes = [(32, 32), (64, 64)]  # 64 is the training size
    >>> swept = ep.sweep(ep.reference.load(), prompts=["noto dog"], sizes=sizes, steps=1, progress=False)
    >>> fit = ep.fit(swept)
    >>> figure, data = entropy_over_layers(fit)
    >>> list(data)
    ['layer', 'form', 'ln_tokens', 'entropy', 'low', 'high']
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    data = pd.concat([draw_layers_by_depth(left, fit), draw_law(right, fit)], ignore_index=True)
    left.legend(loc="upper left", edgecolor="none")
    right.set_title("all layers together", fontsize=9)
    right.legend(fontsize=7.5, edgecolor="none")
    return figure, data


def draw_layers_by_depth(axes: Axes, fit: Fit) -> pd.DataFrame:
    """Draw the mean entropy of each layer against ln N, a line for each layer, coloured by depth.

    Returns:
        The data, with the columns of `entropy_over_layers`.

    >>> import entropy_probe as ep
    >>> sizes = [(32, 32), (64, 64)]  # 64 is the training size
    >>> swept = ep.sweep(ep.reference.load(), prompts=["noto dog"], sizes=sizes, steps=1, progress=False)
    >>> draw_layers_by_depth(Figure().subplots(), ep.fit(swept))["form"].unique().tolist()
    ['measured']
    """
    names = [law.layer for law in fit.layers[:-1]]
    colours = mpl.colors.ListedColormap(shades(256))
    scale = mpl.colors.Normalize(1, max(2, len(names)))
    means = fit.points.groupby(["layer", "tokens"], sort=True)["entropy"].mean().reset_index()
    data = means.assign(form="measured", ln_tokens=np.log(means["tokens"].astype(float)))
    for number, name in enumerate(names, 1):
        own = data[data["layer"] == name]
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1}
        axes.plot(own["ln_tokens"], own["entropy"], color=colours(scale(number)), label=f"_{short_name(name)}", **style)
    ends = [data["ln_tokens"].min(), data["ln_tokens"].max()]
    axes.plot(ends, ends, color="0.5", linestyle=":", label="maximum, H = ln N")
    axes.set_xlabel("ln N  (N tokens of the layer)")
    axes.set_ylabel("mean entropy, nats")
    axes.set_title("every layer", fontsize=9)
    figure: Any = axes.figure
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, colours), ax=axes, label="layer, in network order")
    bar.ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
    bar.ax.invert_yaxis()
    return data.reindex(columns=COLUMNS)


def draw_law(axes: Axes, fit: Fit) -> pd.DataFrame:
    """Draw the mean over the layers at each size, and the fitted forms of H(N).

    Every form is fitted to each layer. The curves are means over the layers, as the measured points are.

    Returns:
        The data, with the columns of `entropy_over_layers`.

    >>> import entropy_probe as ep
    >>> sizes = [(32, 32), (64, 64)]  # 64 is the training size
    >>> swept = ep.sweep(ep.reference.load(), prompts=["noto dog"], sizes=sizes, steps=1, progress=False)
    >>> fit = ep.fit(swept)
    >>> draw_law(Figure().subplots(), fit)["form"].unique().tolist()
    ['measured', 'log', 'power', 'linear', 'gaussian']
    """
    data = _means_and_forms(fit)
    errors = fit.rivals[fit.rivals["layer"] == POOLED].set_index("form")["error"]
    colours = sns.color_palette(PALETTE)
    styles: dict[str, tuple[str, dict[str, Any]]] = {
        "log": (f"a + b ln N, b = {fit.pooled.slope:.3f}", {"color": colours[3]}),
        "power": ("c N^p", {"color": colours[0], "linestyle": "--"}),
        "linear": ("a + b N", {"color": colours[2], "linestyle": "-."}),
        "gaussian": ("c + ln N − σ²/2", {"color": colours[4], "linestyle": ":", "marker": "s", "markersize": 4}),
    }
    log = data[data["form"] == "log"]
    if log["low"].notna().all():
        axes.fill_between(log["ln_tokens"], log["low"], log["high"], color=colours[3], alpha=0.2, linewidth=0)
    for form, (formula, style) in styles.items():
        own = data[data["form"] == form]
        label = formula if math.isnan(errors[form]) else f"{formula}  (error {errors[form]:.2f} nats)"
        axes.plot(own["ln_tokens"], own["entropy"], label=label, **style)
    own = data[data["form"] == "measured"]
    bars: dict[str, Any] = {"fmt": "o", "color": "black", "markersize": 5, "capsize": 3}
    error = own["high"] - own["entropy"]
    axes.errorbar(own["ln_tokens"], own["entropy"], yerr=error, label="measured", zorder=4, **bars)
    axes.set_xlabel("ln N, mean over the layers")
    axes.set_ylabel("mean entropy over the layers, nats")
    return data


def _means_and_forms(fit: Fit) -> pd.DataFrame:
    """Compute the means over the layers at each size, and every form on a fine grid of ln N."""
    points = fit.points.assign(x=np.log(fit.points["tokens"]))
    points["gaussian"] = gaussian_entropy(points)
    offset = (points["entropy"] - points["gaussian"]).groupby(points["layer"]).transform("mean")
    points["gaussian"] += offset
    by_prompt = points.groupby(["height", "width", "prompt"])[["x", "entropy", "gaussian"]].mean()
    by_size = by_prompt.groupby(["height", "width"])
    means = by_size.mean().assign(error=half_width(by_size["entropy"])).sort_values("x")
    fine = np.linspace(means["x"].min(), means["x"].max(), 60)

    def rows(form: str, x: Any, entropy: Any, low: Any = math.nan, high: Any = math.nan) -> pd.DataFrame:
        values = {"ln_tokens": np.asarray(x, float), "entropy": np.asarray(entropy, float), "low": low, "high": high}
        return pd.DataFrame(values).assign(layer=POOLED, form=form)

    law = fit.pooled
    middle_x, middle_y = float(points["x"].mean()), float(points["entropy"].mean())
    fan = [middle_y + slope * (fine - middle_x) for slope in (law.slope_low, law.slope_high)]
    parts = [
        rows("measured", means["x"], means["entropy"], *_interval(means["entropy"], means["error"])),
        rows("log", fine, law.intercept + law.slope * fine, np.minimum(*fan), np.maximum(*fan)),
    ]
    for form in ("power", "linear"):
        predicted = []
        for _, own in points.groupby("layer", sort=False):
            places = own.groupby(["height", "width"])["x"].first().reindex(means.index)
            tokens = np.exp(np.interp(fine, means["x"], places))
            n, h = (own[column].to_numpy(float) for column in ("tokens", "entropy"))
            predicted.append(FORMS[form](n, h, tokens))
        parts.append(rows(form, fine, np.mean(predicted, axis=0)))
    parts.append(rows("gaussian", means["x"], means["gaussian"]))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _interval(middle: pd.Series, error: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    return (middle - error).to_numpy(float), (middle + error).to_numpy(float)


def entropy_by_layer(fit: Fit) -> Plot:
    """Plot a panel for each layer: the entropy of every image against ln N, the fitted line, and the maximum ln N.

    Returns:
        The figure, and its data: the columns of `Fit.points`, `ln_tokens`, and `fitted` (a + b ln N, nats).

    >>> import entropy_probe as ep
    >>> sizes = [(32, 32), (64, 64)]  # 64 is the training size
    >>> swept = ep.sweep(ep.reference.load(), prompts=["noto dog"], sizes=sizes, steps=1, progress=False)
    >>> fit = ep.fit(swept)
    >>> figure, data = entropy_by_layer(fit)
    >>> len(data) == 2 * data["layer"].nunique()  # one image at two sizes
    True
    """
    layers = fit.layers[:-1]
    columns = min(5, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(2.5 * columns, 2.3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=False)
    colours = sns.color_palette(PALETTE)
    data = fit.points.assign(ln_tokens=np.log(fit.points["tokens"].astype(float)))
    laws = {law.layer: law for law in layers}
    data["fitted"] = [
        laws[layer].intercept + laws[layer].slope * x for layer, x in zip(data["layer"], data["ln_tokens"], strict=True)
    ]
    for axes, law in zip(grid.flat, layers, strict=False):
        own = data[data["layer"] == law.layer].sort_values("ln_tokens", kind="stable")
        ends = own.iloc[[0, -1]]
        axes.plot(ends["ln_tokens"], ends["ln_tokens"], color="0.6", linestyle=":", label="maximum, H = ln N")
        axes.plot(ends["ln_tokens"], ends["fitted"], color=colours[3], label="H = a + b ln N")
        axes.scatter(own["ln_tokens"], own["entropy"], s=9, alpha=0.75, color=colours[9], label="image", linewidths=0)
        error = "" if math.isnan(law.slope_se) else f" ± {law.slope_se:.3f}"
        axes.set_title(f"{short_name(law.layer)}\nb = {law.slope:.3f}{error}", fontsize=8)
    for axes in grid.flat[len(layers) :]:
        axes.axis("off")
    figure.supxlabel("ln N  (tokens of the layer)")
    figure.supylabel("entropy, nats")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
    return figure, data
