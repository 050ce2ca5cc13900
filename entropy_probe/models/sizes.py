"""Image sizes of a pipeline: what it was trained at, what it can draw, and the tokens of each layer at any of them."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from entropy_probe.attention import (
    AttentionCall,
    TokenGrid,
    attention_calls,
    configured_size,
    default_size,
    find_denoiser,
)
from entropy_probe.errors import InputError

Size = tuple[int, int]
"""(height, width) in pixels, the order of diffusers."""


@dataclass(frozen=True)
class Layer:
    """An attention layer: its heads and head width, and, for visual attention, its token grid."""

    name: str
    kind: str
    heads: int
    head_width: int
    key_tokens: int
    grid: TokenGrid | None

    @property
    def training_tokens(self) -> int | None:
        """T of the scaling laws, in one frame; None for cross-attention."""
        return None if self.grid is None else self.grid.tokens


_REDUCTIONS = (
    "vae_scale_factor",
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
)
"""What pipelines call it."""

SHORT = 4
"""Steps of a sampling that is stopped in the first: with fewer, a schedule such as Mochi's cannot be made."""

FRAMES = 9
"""Frames of a video that is sampled only to see the calls: one more than a multiple of four and eight, as most want."""


def pixels_per_latent(pipeline: Any) -> int:
    """The autoencoder's reduction of height and width; 1 for a pipeline that works on pixels."""
    return int(next((getattr(pipeline, name) for name in _REDUCTIONS if hasattr(pipeline, name)), 1))


def training_size(pipeline: Any) -> Size:
    """Height and width, in pixels, that the model was trained at: the denoiser's `sample_size`, or the default size.

    Raises:
        InputError: if the configuration does not say.
    """
    if latents := configured_size(find_denoiser(pipeline)):
        return latents[0] * pixels_per_latent(pipeline), latents[1] * pixels_per_latent(pipeline)
    if default := default_size(pipeline):
        return default
    raise InputError(f"the configuration of {type(pipeline).__name__} does not tell its training size (sample_size)")


def check_size(pipeline: Any, size: Size) -> None:
    """Refuse a size that the pipeline cannot draw.

    Raises:
        InputError: naming the size and its nearest neighbours that can be drawn.
    """
    step = max(8, pixels_per_latent(pipeline))
    height, width = size
    if height <= 0 or width <= 0:
        raise InputError(f"size {format_size(size)}: height and width must be positive")
    if height % step or width % step:
        near = (max(step, round(height / step) * step), max(step, round(width / step) * step))
        near_text = format_size(near)
        raise InputError(
            f"size {format_size(size)}: the pipeline draws multiples of {step} pixels, such as {near_text}"
        )


def check_steps(pipeline: Any, steps: int) -> None:
    """Refuse a number of sampling steps that the schedule does not have.

    Raises:
        InputError: naming the most there are.
    """
    most = getattr(getattr(getattr(pipeline, "scheduler", None), "config", None), "num_train_timesteps", None)
    if steps < 1 or (most is not None and steps > most):
        raise InputError(f"steps must be at least 1{'' if most is None else f' and at most {most}'}, not {steps}")


def check_guidance(scale: float) -> None:
    """Refuse a guidance scale that is negative or no number.

    Raises:
        InputError: naming it.
    """
    if not 0 <= scale < math.inf:
        raise InputError(f"the guidance scale must be 0 or more, not {scale}")


def at_exact_size(pipeline: Any) -> dict[str, Any]:
    """What a call must say so that the asked size is the one that is sampled: PixArt's would sample the nearest bin."""
    known = inspect.signature(type(pipeline).__call__).parameters
    return {"use_resolution_binning": False} if "use_resolution_binning" in known else {}


def layers(pipeline: Any, size: Size | None = None) -> list[Layer]:
    """The attention layers in the order in which they run, with their token grids at a size (default: as trained).

    Samples at that size, without guidance, until the denoiser has run once, to see the calls themselves.
    """
    height, width = size or training_size(pipeline)
    found: dict[str, Layer] = {}

    def note(call: AttentionCall) -> None:
        grid = call.grid if call.visual else None
        _, heads, _, head_width = call.query.shape
        found.setdefault(call.layer, Layer(call.layer, call.kind, heads, head_width, call.key.shape[2], grid))

    def stop(*_: object) -> None:
        raise _SeenError

    denoiser = find_denoiser(pipeline)
    # Perturbed-attention guidance exchanges processors while it samples, and would exchange them back at its end.
    processors = [(module, module.processor) for module in denoiser.modules() if hasattr(module, "processor")]
    with attention_calls(pipeline, note), torch.no_grad():
        hook = denoiser.register_forward_hook(stop)
        try:
            pipeline(**_short(pipeline, (height, width)))
        except _SeenError:
            pipeline.maybe_free_model_hooks()
        finally:
            hook.remove()
            for module, processor in processors:
                if module.processor is not processor:
                    module.processor = processor
    return list(found.values())


class _SeenError(Exception):
    """The denoiser has run once: the steps after it, and decoding, would show nothing more."""


def _short(pipeline: Any, size: Size) -> dict[str, Any]:
    """Arguments of a short sampling: those that the pipeline has, and what it cannot do without.

    Raises:
        InputError: for a size other than that of a pipeline that draws only one, and for a pipeline that needs what
            cannot be made up.
    """
    known = inspect.signature(pipeline.__call__).parameters
    asked = {
        "prompt": "",
        "height": size[0],
        "width": size[1],
        "num_inference_steps": SHORT,
        "num_frames": FRAMES,
        "guidance_scale": 1.0,
        "output_type": "latent",
    }
    made_up = {"class_labels": [0], "image": Image.new("RGB", (size[1], size[0]))}
    needed = {
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    if lacking := needed - asked.keys() - made_up.keys():
        raise InputError(
            f"{type(pipeline).__name__} cannot be tried without {', '.join(sorted(lacking))}: "
            "capture a call of your own, `with entropy_probe.attention(pipe): pipe(...)`"
        )
    if "height" not in known and size != training_size(pipeline):
        raise InputError(f"{type(pipeline).__name__} draws {format_size(training_size(pipeline))} pixels only")
    return {
        **{name: value for name, value in asked.items() if name in known},
        **{name: value for name, value in made_up.items() if name in needed},
        **at_exact_size(pipeline),
    }


def training_tokens(pipeline: Any) -> dict[str, int]:
    """T of every visual attention layer: its tokens at the training size, in one frame of a video.

    For images this is the `training_tokens` of `laws.scaled`. A video's T has as many frames as its N: leave that
    argument out, and it is taken from each call.
    """
    return {layer.name: layer.training_tokens for layer in layers(pipeline) if layer.training_tokens is not None}


def short_name(layer: str) -> str:
    """`down_blocks.0.attentions.1.transformer_blocks.0.attn1` to `down.0.1.0.attn1`, for tables and figures."""
    return re.sub(r"_blocks?(?=\.)", "", layer).replace("attentions.", "").replace("transformer.", "")


def parse_size(text: str) -> Size:
    """`96` to (96, 96), `96x128` to (96, 128): HEIGHTxWIDTH.

    Raises:
        InputError: for anything else, or a size that is not positive.
    """
    parts = text.lower().strip().split("x")
    try:
        numbers = [int(p) for p in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"size {text!r}: give pixels, either one number (square) or HEIGHTxWIDTH, such as 96x128")
    if min(numbers) <= 0:
        raise InputError(f"size {text!r}: height and width must be positive")
    return numbers[0], numbers[-1]


def format_size(size: Size) -> str:
    """(64, 64) to `64`, (96, 128) to `96x128`."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
