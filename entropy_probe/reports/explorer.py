"""`explore`: a sweep under the fingers, in a notebook. What a look needs beyond the sweep is sampled again."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from entropy_probe.attention import AttentionCall, TokenGrid, attention_calls, capture, find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.laws import check_unscaled
from entropy_probe.models import Size, format_size, sample_images, short_name
from entropy_probe.plots import figures
from entropy_probe.runs import Sweep

if TYPE_CHECKING:
    from ipywidgets import VBox

KEPT = 16
"""Looks that are kept, so that going back to one samples nothing."""


@dataclass(frozen=True)
class Look:
    """One self-attention layer at one sampling step of one image.

    Attributes:
        image: the finished image.
        grid: its tokens in that layer.
        entropy: of every head and token, nats.
        query, key, scale: what the attention was computed from; the logits are `scale` times their products.
    """

    image: Image.Image
    grid: TokenGrid
    entropy: Float[Tensor, "heads grid_height grid_width"]
    query: Float[Tensor, "heads tokens width"]
    key: Float[Tensor, "heads tokens width"]
    scale: float

    def attention(self, row: int, column: int) -> Float[Tensor, "heads grid_height grid_width"]:
        """What the token in that row and column of the grid attends to, for that token alone; sums to 1."""
        query = self.query[:, row * self.grid.width + column].double()
        logits = self.scale * torch.einsum("hw,htw->ht", query, self.key.double())
        return logits.softmax(-1).float().reshape(-1, self.grid.height, self.grid.width)


@dataclass(frozen=True)
class Choice:
    """What the controls say; `across` and `down` are where the token lies, as fractions of the image."""

    prompt: str
    size: Size
    layer: str
    head: int | None
    step: int
    across: float
    down: float


def look(sweep: Sweep, prompt: str, size: Size, layer: str, step: int) -> Look:
    """Sample an image of the sweep's first seed again, under the original model, and keep one layer at one step.

    Raises:
        InputError: if the sweep has no pipeline, or one with a law applied, or the layer shares keys, has a mask, or
            made no call at that step.
    """
    if sweep.pipeline is None:
        raise InputError("exploring samples again: open the run with its pipeline, Sweep.open(path, pipeline)")
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
        )[0]
    of_prompt = ((c, captured.branch_items(c, "cond").start) for c in calls)
    call, item = next(((c, start) for c, start in of_prompt if start < len(c.query)), (None, 0))
    if call is None or call.mask is not None or call.enable_gqa or call.grid is None:
        raise InputError(f"layer {layer!r} has no plain attention over the image at step {step}: choose another")
    entropy = captured.entropy_map(layer, step, branch="cond")[0]
    return Look(image, call.grid, entropy, call.query[item].cpu(), call.key[item].cpu(), call.scale)


def draw_look(shown: Look, curves: pd.DataFrame, choice: Choice) -> Figure:
    """Three panels: the entropy of every token, the layer's curve over the sampling, what one token attends to.

    Args:
        shown: the look.
        curves: rows of the sweep's frame, of one prompt, layer and (or all) heads.
        choice: what was chosen.
    """
    heads = slice(None) if choice.head is None else slice(choice.head, choice.head + 1)
    row, column = int(choice.down * shown.grid.height), int(choice.across * shown.grid.width)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, values, title in (
        (left, shown.entropy[heads].mean(0), "entropy of every token, nats"),
        (right, shown.attention(row, column)[heads].mean(0), "attention of the marked token"),
    ):
        bar = figures.draw_map(axes, shown.image, values.numpy(), choice.size)
        figure.colorbar(bar, ax=axes, shrink=0.7)
        height, width = choice.size
        x, y = (column + 0.5) / shown.grid.width * width, (row + 0.5) / shown.grid.height * height
        axes.plot(x, y, "s", markersize=7, markerfacecolor="none", markeredgecolor="red")
        axes.set_title(title, fontsize=9)
    for size, own in curves.groupby(["height", "width"]):
        by_timestep = own.groupby("timestep")["entropy"].mean()
        here = size == choice.size
        middle.plot(by_timestep.index, by_timestep, color="C0" if here else "0.75", zorder=3 if here else 2)
    middle.axvline(curves.loc[curves["step"] == choice.step, "timestep"].iloc[0], color="red", linewidth=0.8)
    middle.invert_xaxis()
    middle.set_xlabel("timestep (noise to image)")
    middle.set_title("mean entropy, nats; blue: this size, grey: the others", fontsize=9)
    return figure


def explore(sweep: Sweep) -> VBox:
    """Look around in a sweep: entropy over the image, over the sampling, and what a chosen token attends to.

    The curve is the sweep's own; the maps are of the first seed, sampled again when a prompt, size, layer or step is
    chosen that was not looked at before.

    Args:
        sweep: of the original model, with its pipeline at hand.

    Raises:
        InputError: if the sweep has no pipeline or no self-attention over an image, or ipywidgets is not installed.
    """
    try:
        import ipywidgets
    except ImportError as error:
        remedy = "pip install '.[notebook]' in the clone of entropy-probe"
        raise InputError(f"exploring needs ipywidgets: {remedy}") from error
    if sweep.pipeline is None:
        raise InputError("exploring samples again: open the run with its pipeline, Sweep.open(path, pipeline)")
    frame = sweep.frame()
    frame = frame[(frame["kind"] == "self") & (frame["axes"] == "spatial") & (frame["law"] == "original")]
    if frame.empty:
        raise InputError("there is no self-attention over an image to explore in this sweep")
    heads = frame.groupby("layer", sort=False)["head"].nunique()
    late: dict[str, Any] = {"continuous_update": False}
    controls = {
        "prompt": ipywidgets.Dropdown(options=sweep.grid.prompts),
        "size": ipywidgets.Dropdown(options=[(format_size(size), size) for size in sweep.grid.sizes]),
        "layer": ipywidgets.Dropdown(options=[(short_name(str(name)), name) for name in heads.index]),
        "head": ipywidgets.Dropdown(),
        "step": ipywidgets.IntSlider(sweep.manifest.steps // 2, 0, sweep.manifest.steps - 1, **late),
        "across": ipywidgets.FloatSlider(0.5, min=0, max=0.99, step=0.01, **late),
        "down": ipywidgets.FloatSlider(0.5, min=0, max=0.99, step=0.01, **late),
    }
    for name, control in controls.items():
        control.description = name
    panel = ipywidgets.HTML()
    looks = lru_cache(KEPT)(partial(look, sweep))

    def offer_heads(_: Any = None) -> None:
        count = heads[controls["layer"].value]
        controls["head"].options = [("mean of all", None), *((str(head), head) for head in range(count))]

    def redraw(_: Any = None) -> None:
        choice = Choice(**{name: control.value for name, control in controls.items()})
        own = frame[(frame["layer"] == choice.layer) & (frame["prompt"] == choice.prompt)]
        curves = own if choice.head is None else own[own["head"] == choice.head]
        try:
            shown = looks(choice.prompt, choice.size, choice.layer, choice.step)
        except InputError as error:
            panel.value = html.escape(str(error))
            return
        with figures.page_theme():
            panel.value = figures.inline_svg(draw_look(shown, curves, choice), f"{panel.model_id}-", "what was chosen")

    offer_heads()
    controls["layer"].observe(offer_heads, "value")
    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([ipywidgets.HBox([*controls.values()], layout={"flex_flow": "row wrap"}), panel])
