"""Explore a sweep in a notebook. Images and entropy maps that the sweep did not store are sampled again."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from entropy_probe.attention import AttentionCall, TokenGrid, attention_calls, capture, find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.extras import name_missing_extra
from entropy_probe.laws import check_unscaled
from entropy_probe.models import Size, format_size, sample_images, short_name
from entropy_probe.plots import Plot, draw_map, inline_svg, page_theme
from entropy_probe.runs import Sweep

if TYPE_CHECKING:
    from types import ModuleType

    from ipywidgets import VBox

CACHED_VIEWS = 16
"""Number of views that are cached, so that returning to one samples nothing."""


@dataclass(frozen=True)
class LayerView:
    """One self-attention layer at one sampling step of one image.

    Attributes:
        image: the finished image.
        grid: the grid of its tokens in the layer.
        entropy: entropy of every head and token, nats.
        query: the queries of the attention call.
        key: its keys.
        scale: its softmax scale; the logits are `scale` times the products of queries and keys.
    """

    image: Image.Image
    grid: TokenGrid
    entropy: Float[Tensor, "heads grid_height grid_width"]
    query: Float[Tensor, "heads tokens width"]
    key: Float[Tensor, "heads tokens width"]
    scale: float

    def attention(self, row: int, column: int) -> Float[Tensor, "heads grid_height grid_width"]:
        """Compute the attention weights of one token over all tokens. They sum to 1 in each head.

        Args:
            row: row of the token in the grid, from 0.
            column: its column.
        """
        query = self.query[:, row * self.grid.width + column].double()
        logits = self.scale * torch.einsum("hw,htw->ht", query, self.key.double())
        return logits.softmax(-1).float().reshape(-1, self.grid.height, self.grid.width)


@dataclass(frozen=True)
class Choice:
    """The values of the controls.

    Attributes:
        prompt: the prompt.
        size: (height, width) in pixels.
        layer: name of the layer.
        head: number of the head; None is the mean over the heads.
        step: sampling step, from 0.
        across: horizontal position of the token, as a fraction of the width.
        down: vertical position of the token, as a fraction of the height.
    """

    prompt: str
    size: Size
    layer: str
    head: int | None
    step: int
    across: float
    down: float

    def token(self, grid: TokenGrid) -> tuple[int, int]:
        """Return the row and the column of the token in a grid."""
        return int(self.down * grid.height), int(self.across * grid.width)


def layer_view(sweep: Sweep, prompt: str, size: Size, layer: str, step: int) -> LayerView:
    """Sample an image of the first seed again with the original model, and keep one layer at one step.

    Raises:
        InputError: if the sweep has no pipeline, a law is applied to the pipeline, or the layer has no call with
            separate keys per head and without a mask at that step.
    """
    if sweep.pipeline is None:
        raise InputError("exploring samples images again: open the run with its pipeline, Sweep.open(path, pipeline)")
    check_unscaled(sweep.pipeline)
    calls: list[AttentionCall] = []

    def note(call: AttentionCall) -> None:
        if call.layer == layer and captured.step == step:
            calls.append(call)

    with (
        capture(sweep.pipeline, layers=layer, keep=layer, keep_steps=[step]) as captured,
        attention_calls(find_denoiser(sweep.pipeline), note, after_scaling=True),
    ):
        image = sample_images(
            sweep.pipeline,
            [prompt],
            size,
            sweep.grid.seeds[:1],
            steps=sweep.manifest.steps,
            guidance_scale=sweep.manifest.guidance_scale,
            pipeline_kwargs=sweep.pipeline_kwargs,
        )[0]
    of_prompt = ((c, captured.branch_items(c, "cond").start) for c in calls)
    call, item = next(((c, start) for c, start in of_prompt if start < len(c.query)), (None, 0))
    if call is None or call.mask is not None or call.enable_gqa or call.grid is None:
        raise InputError(f"layer {layer!r} has no plain attention over the image at step {step}: choose another")
    entropy = captured.entropy_map(layer, step, branch="cond")[0]
    return LayerView(image, call.grid, entropy, call.query[item].cpu(), call.key[item].cpu(), call.scale)


def plot_layer_view(shown: LayerView, curves: pd.DataFrame, choice: Choice) -> Plot:
    """Plot the entropy of every token, the entropy of the layer over the timesteps, and the attention of one token.

    Args:
        shown: the layer.
        curves: rows of the sweep's frame for one prompt and layer, and one head or all heads.
        choice: the values of the controls.

    Returns:
        The figure, and a row for each token: `row`, `column`, `entropy` (nats) and `attention` (weight of the token in
        the attention of the chosen token), both means over the heads.
    """
    heads = slice(None) if choice.head is None else slice(choice.head, choice.head + 1)
    entropy = shown.entropy[heads].mean(0).numpy()
    attention = shown.attention(*choice.token(shown.grid))[heads].mean(0).numpy()
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_tokens(figure, left, shown, choice, entropy)
    left.set_title("entropy of every token, nats", fontsize=9)
    _draw_tokens(figure, right, shown, choice, attention)
    right.set_title("attention of the marked token", fontsize=9)
    _draw_curves(middle, curves, choice)
    rows, columns = np.indices(entropy.shape).reshape(2, -1)
    values = {"entropy": entropy.reshape(-1), "attention": attention.reshape(-1)}
    return figure, pd.DataFrame({"row": rows, "column": columns, **values})


def _draw_tokens(figure: Figure, axes: Axes, shown: LayerView, choice: Choice, values: np.ndarray) -> None:
    """Draw a value of every token over the image, and mark the chosen token."""
    coloured = draw_map(axes, shown.image, values, choice.size)
    figure.colorbar(coloured, ax=axes, shrink=0.7)
    row, column = choice.token(shown.grid)
    height, width = choice.size
    x, y = (column + 0.5) / shown.grid.width * width, (row + 0.5) / shown.grid.height * height
    axes.plot(x, y, "s", markersize=7, markerfacecolor="none", markeredgecolor="red")


def _draw_curves(axes: Axes, curves: pd.DataFrame, choice: Choice) -> None:
    """Draw the mean entropy against the timestep, a line per size, and mark the chosen step."""
    for size, own in curves.groupby(["height", "width"]):
        by_timestep = own.groupby("timestep")["entropy"].mean()
        chosen = size == choice.size
        axes.plot(by_timestep.index, by_timestep, color="C0" if chosen else "0.75", zorder=3 if chosen else 2)
    axes.axvline(curves.loc[curves["step"] == choice.step, "timestep"].iloc[0], color="red", linewidth=0.8)
    axes.invert_xaxis()
    axes.set_xlabel("timestep (noise to image)")
    axes.set_title("mean entropy, nats; blue: this size, grey: other sizes", fontsize=9)


def explore(sweep: Sweep) -> VBox:
    """Explore a sweep: the entropy over the image and over the timesteps, and the attention of any token.

    The entropy over the timesteps comes from the sweep. The maps are sampled again from the first seed, once for each
    combination of prompt, size, layer and step.

    Args:
        sweep: a sweep of the original model with its pipeline.

    Returns:
        An ipywidgets box to show in a notebook.

    Raises:
        InputError: if the sweep has no pipeline or no self-attention over an image, or ipywidgets is not installed.

    Examples:
        >>> explore(ep.Sweep.open("my-run", pipeline))  # doctest: +SKIP
    """
    with name_missing_extra():
        import ipywidgets
    if sweep.pipeline is None:
        raise InputError("exploring samples images again: open the run with its pipeline, Sweep.open(path, pipeline)")
    frame = sweep.frame()
    frame = frame[(frame["kind"] == "self") & (frame["axes"] == "spatial") & (frame["law"] == "original")]
    if frame.empty:
        raise InputError("this sweep has no self-attention over an image, so it cannot be explored")
    heads = frame.groupby("layer", sort=False)["head"].nunique()
    controls = _controls(ipywidgets, sweep, list(heads.index))
    panel = ipywidgets.HTML()
    views = lru_cache(CACHED_VIEWS)(partial(layer_view, sweep))

    def offer_heads(_: Any = None) -> None:
        count = heads[controls["layer"].value]
        controls["head"].options = [("mean of all", None), *((str(head), head) for head in range(count))]

    def redraw(_: Any = None) -> None:
        choice = Choice(**{name: control.value for name, control in controls.items()})
        panel.value = _render(views, frame, choice, f"{panel.model_id}-")

    offer_heads()
    controls["layer"].observe(offer_heads, "value")
    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([ipywidgets.HBox([*controls.values()], layout={"flex_flow": "row wrap"}), panel])


def _controls(ipywidgets: ModuleType, sweep: Sweep, layers: list[str]) -> dict[str, Any]:
    """Create the controls, by the names of the fields of `Choice`."""
    on_release: dict[str, Any] = {"continuous_update": False}
    controls = {
        "prompt": ipywidgets.Dropdown(options=sweep.grid.prompts),
        "size": ipywidgets.Dropdown(options=[(format_size(size), size) for size in sweep.grid.sizes]),
        "layer": ipywidgets.Dropdown(options=[(short_name(name), name) for name in layers]),
        "head": ipywidgets.Dropdown(),
        "step": ipywidgets.IntSlider(sweep.manifest.steps // 2, 0, sweep.manifest.steps - 1, **on_release),
        "across": ipywidgets.FloatSlider(0.5, min=0, max=0.99, step=0.01, **on_release),
        "down": ipywidgets.FloatSlider(0.5, min=0, max=0.99, step=0.01, **on_release),
    }
    for name, control in controls.items():
        control.description = name
    return controls


def _render(views: Any, frame: pd.DataFrame, choice: Choice, prefix: str) -> str:
    """Return the figure of a choice as SVG, or the reason why it cannot be drawn."""
    curves = frame[(frame["layer"] == choice.layer) & (frame["prompt"] == choice.prompt)]
    if choice.head is not None:
        curves = curves[curves["head"] == choice.head]
    try:
        shown = views(choice.prompt, choice.size, choice.layer, choice.step)
    except InputError as error:
        return html.escape(str(error))
    with page_theme():
        figure, _ = plot_layer_view(shown, curves, choice)
        return inline_svg(figure, prefix, "Entropy and attention of the chosen layer.")
