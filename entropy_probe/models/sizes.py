"""Image sizes of a pipeline: the training size, the sizes it can sample, and the tokens of each layer at a size."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from entropy_probe.attention import (
    AttentionCall,
    TokenGrid,
    attention_calls,
    configured_size,
    default_size,
    denoiser_name,
    find_denoiser,
    parts_of_denoiser,
    patch_sizes,
)
from entropy_probe.errors import InputError
from entropy_probe.escape import one_line
from entropy_probe.models.failures import report_model_errors

Size = tuple[int, int]
"""(height, width) in pixels, the order of diffusers."""

MAX_SIDE = 16_384
"""Largest height and width, in pixels. The latents of a larger image alone would fill the memory."""


@dataclass(frozen=True)
class Layer:
    """An attention layer of a model at one image size.

    Attributes:
        name: name of the attention module in the denoiser.
        kind: `self`, `cross` or `joint`.
        heads: number of heads.
        head_width: dimension of one head.
        key_tokens: number of keys.
        grid: grid of the image tokens; None for cross-attention.
        training_tokens: T of the scaling laws: image tokens at the training size, and at the training length of videos
            if the attention spans frames. None for cross-attention, and if the training size is unknown.
        axes: what one attention spans: `spatial`, `temporal` or `spatio-temporal`.
    """

    name: str
    kind: str
    heads: int
    head_width: int
    key_tokens: int
    grid: TokenGrid | None
    training_tokens: int | None = None
    axes: str = "spatial"


_REDUCTIONS = (
    "vae_scale_factor",
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
)
"""Attributes that give the pixels per latent pixel, in different pipelines."""

SHORT = 4
"""Sampling steps that `layers` requests; it stops when each denoiser has run. Schedules such as Mochi's need four."""

FRAMES = 9
"""Frames of a video that `layers` requests: one more than a multiple of four and eight, as most pipelines need."""


def pixels_per_latent(pipeline: Any) -> int:
    """Return the factor by which the autoencoder reduces height and width: 1 for a pipeline that works on pixels.

    >>> from types import SimpleNamespace
    >>> pixels_per_latent(SimpleNamespace(vae_scale_factor=8)), pixels_per_latent(SimpleNamespace())
    (8, 1)
    """
    return int(next((getattr(pipeline, name) for name in _REDUCTIONS if hasattr(pipeline, name)), 1))


def training_size(pipeline: Any) -> Size:
    """Return (height, width) in pixels at training: the denoiser's `sample_size`, or the pipeline's default size.

    Raises:
        InputError: if the configuration has neither, or a `sample_size` that is not a size.

    >>> import entropy_probe as ep
    >>> training_size(ep.reference.load())
    (64, 64)
    """
    denoiser = find_denoiser(pipeline)
    check_sample_size(denoiser)
    if latents := configured_size(denoiser):
        size = latents[0] * pixels_per_latent(pipeline), latents[1] * pixels_per_latent(pipeline)
        if max(size) > MAX_SIDE:
            raise InputError(
                f"the training size {format_size(size)} of {denoiser_name(denoiser)} is larger than {MAX_SIDE} pixels: "
                "correct sample_size in its config.json"
            )
        return size
    if default := default_size(pipeline):
        return default
    raise InputError(
        f"the configuration of {type(pipeline).__name__} does not contain its training size: set sample_size in the "
        "configuration of the denoiser"
    )


def check_sample_size(denoiser: Any) -> None:
    """Check the training size in the configuration of a denoiser, which can be any JSON value.

    Raises:
        InputError: if it is neither a positive integer nor a list of at least two.

    >>> from types import SimpleNamespace
    >>> check_sample_size(SimpleNamespace(config=SimpleNamespace(sample_size=1.5)))
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: sample_size must be a positive integer or (height, width), got 1.5: ...
    """
    config = getattr(denoiser, "config", None)
    for name in ("sample_size", "sample_height", "sample_width"):
        value = getattr(config, name, None)
        sides = value if isinstance(value, list | tuple) and len(value) >= 2 else [value]
        is_size = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
        if value is not None and not is_size:
            what = "a positive integer or (height, width)" if name == "sample_size" else "a positive integer"
            raise InputError(f"{name} must be {what}, got {value!r:.100}: correct the config.json of the denoiser")


def check_size(pipeline: Any, size: Size) -> None:
    """Check that a pipeline can sample a size.

    Raises:
        InputError: if it cannot. The message contains a similar size that it can sample.

    >>> from types import SimpleNamespace
    >>> check_size(SimpleNamespace(vae_scale_factor=8), (64, 50))
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: height and width must be multiples of 8 pixels, such as 64x48, got size 64x50
    """
    step = max(8, pixels_per_latent(pipeline))
    height, width = size
    if height <= 0 or width <= 0:
        raise InputError(f"height and width must be positive, got size {format_size(size)}")
    if max(size) > MAX_SIDE:
        raise InputError(f"height and width must be at most {MAX_SIDE} pixels, got size {format_size(size)}")
    if height % step or width % step:
        near = (max(step, round(height / step) * step), max(step, round(width / step) * step))
        raise InputError(
            f"height and width must be multiples of {step} pixels, such as {format_size(near)}, got size "
            f"{format_size(size)}"
        )


def size_multiple(pipeline: Any) -> int:
    """Return a number of pixels whose multiples a pipeline samples: the side of a token of its finest layer.

    >>> import entropy_probe as ep
    >>> size_multiple(ep.reference.load())
    8
    """
    config = getattr(find_denoiser(pipeline), "config", None)
    return max(8, pixels_per_latent(pipeline) * patch_sizes(config)[0])


def check_steps(pipeline: Any, steps: int) -> None:
    """Check that the schedule of a pipeline has a number of sampling steps.

    Raises:
        InputError: if the number is below 1 or above the number of training timesteps.

    >>> from types import SimpleNamespace
    >>> scheduler = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000))
    >>> check_steps(SimpleNamespace(scheduler=scheduler), 2000)
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: steps must be at least 1 and at most 1000, got 2000
    """
    maximum = getattr(getattr(getattr(pipeline, "scheduler", None), "config", None), "num_train_timesteps", None)
    if steps < 1 or (maximum is not None and steps > maximum):
        raise InputError(f"steps must be at least 1{f' and at most {maximum}' if maximum else ''}, got {steps}")


def check_guidance(scale: float) -> None:
    """Check a guidance scale.

    Raises:
        InputError: if it is negative, infinite or NaN.

    >>> check_guidance(4.0)
    >>> check_guidance(-1.0)
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: the guidance scale must be a number of at least 0, got -1.0
    """
    if not 0 <= scale < math.inf:
        raise InputError(f"the guidance scale must be a number of at least 0, got {scale}")


def at_exact_size(pipeline: Any) -> dict[str, Any]:
    """Return arguments that make a pipeline sample the exact size. Without them, PixArt samples the nearest bin."""
    known = inspect.signature(type(pipeline).__call__).parameters
    return {"use_resolution_binning": False} if "use_resolution_binning" in known else {}


def image_arguments(pipeline: Any) -> list[str]:
    """Return the arguments of a pipeline's call that take images and have the default None or no default.

    Whether the pipeline needs them is not known. Images for an IP-Adapter do not count.

    >>> class Pipeline:
    ...     def __call__(self, prompt, image=None, mask_image=None, ip_adapter_image=None): ...
    >>> image_arguments(Pipeline())
    ['image', 'mask_image']
    """
    return [
        name
        for name, parameter in inspect.signature(type(pipeline).__call__).parameters.items()
        if re.fullmatch("(control_|mask_|init_|source_)?images?", name) and parameter.default in (None, parameter.empty)
    ]


def layers(pipeline: Any, size: Size | None = None) -> list[Layer]:
    """Return the attention layers in the order in which they run, with their token grids at a size.

    The model samples without guidance until each denoiser has run once.

    Args:
        pipeline: a diffusers pipeline.
        size: (height, width) in pixels. By default, the training size.

    Raises:
        InputError: if the pipeline cannot sample this size, or needs arguments that have no default.

    >>> import entropy_probe as ep
    >>> first = layers(ep.reference.load(), (96, 64))[0]
    >>> first.kind, first.heads, first.grid.tokens
    ('self', 2, 384)
    """
    height, width = size or training_size(pipeline)
    found: dict[str, Layer] = {}

    def note(call: AttentionCall) -> None:
        grid = call.grid if call.visual else None
        _, heads, _, head_width = call.query.shape
        found.setdefault(
            call.layer,
            Layer(call.layer, call.kind, heads, head_width, call.key.shape[2], grid, call.training_tokens, call.axes),
        )

    denoiser = find_denoiser(pipeline)
    waiting = list(parts_of_denoiser(denoiser).values())

    def stop(part: nn.Module, *_: object) -> None:
        waiting[:] = [one for one in waiting if one is not part]
        if not waiting:
            raise _AllHaveRunError

    # Perturbed-attention guidance replaces processors and restores them at its end, which is not reached here.
    processors = [(module, module.processor) for module in denoiser.modules() if hasattr(module, "processor")]
    with attention_calls(pipeline, note), torch.no_grad():
        hooks = [part.register_forward_hook(stop) for part in waiting]
        try:
            with report_model_errors(pipeline, (height, width)):
                _call(pipeline, (height, width))
        except _AllHaveRunError:
            pipeline.maybe_free_model_hooks()
        finally:
            for hook in hooks:
                hook.remove()
            for module, processor in processors:
                if module.processor is not processor:
                    module.processor = processor
    return list(found.values())


def _call(pipeline: Any, size: Size) -> None:
    """Call a pipeline without images that have the default None, or else with a black image for each of them."""
    arguments = _short(pipeline, size)
    try:
        pipeline(**arguments)
    except (TypeError, ValueError, AttributeError):
        images = [name for name in image_arguments(pipeline) if name not in arguments]
        if not images:
            raise
        pipeline(**arguments, **dict.fromkeys(images, Image.new("RGB", (size[1], size[0]))))


class _AllHaveRunError(Exception):
    """Stops a sampling run after the first forward pass of each denoiser: later steps have the same layers."""


def _short(pipeline: Any, size: Size) -> dict[str, Any]:
    """Return the arguments of a short sampling run: the ones that the pipeline accepts and the ones that it needs.

    Raises:
        InputError: if the pipeline has one fixed size and `size` is another, or if it needs an argument that has no
            placeholder.
    """
    known = inspect.signature(pipeline.__call__).parameters
    usual = {
        "prompt": "",
        "height": size[0],
        "width": size[1],
        "num_inference_steps": SHORT,
        "num_frames": FRAMES,
        "guidance_scale": 1.0,
        "output_type": "latent",
    }
    placeholders = {"class_labels": [0], "image": Image.new("RGB", (size[1], size[0]))}
    needed = {
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    if missing := needed - usual.keys() - placeholders.keys():
        raise InputError(
            f"cannot sample {type(pipeline).__name__} without {', '.join(sorted(missing))}: call it yourself in a "
            "capture, `with entropy_probe.capture(pipe) as captured: pipe(...)`"
        )
    if "height" not in known and size != training_size(pipeline) and not image_arguments(pipeline):
        raise InputError(
            f"{type(pipeline).__name__} samples only {format_size(training_size(pipeline))} pixels, got size "
            f"{format_size(size)}"
        )
    return {
        **{name: value for name, value in usual.items() if name in known},
        **{name: value for name, value in placeholders.items() if name in needed},
        **at_exact_size(pipeline),
    }


def training_tokens(pipeline: Any) -> dict[str, int]:
    """Return T of every visual attention layer: its tokens at the training size.

    For videos, T also counts the frames of the training length, in layers whose attention spans frames. The training
    length is the number of frames that the pipeline samples by default.

    >>> import entropy_probe as ep
    >>> sorted(set(training_tokens(ep.reference.load()).values()))
    [64, 256]
    """
    return {layer.name: layer.training_tokens for layer in layers(pipeline) if layer.training_tokens is not None}


def short_name(layer: str) -> str:
    """Shorten the name of a layer for tables and figures, and escape its control characters.

    >>> short_name("down_blocks.0.attentions.1.transformer_blocks.0.attn1")
    'down.0.1.0.attn1'
    """
    return one_line(re.sub(r"_blocks?(?=\.)", "", layer).replace("attentions.", "").replace("transformer.", ""))


def parse_size(text: str) -> Size:
    """Read a size in pixels: one number for a square, or HEIGHTxWIDTH.

    Raises:
        InputError: if the text has another form, or a number is not positive.

    >>> parse_size("96"), parse_size("96x128")
    ((96, 96), (96, 128))
    """
    parts = text.lower().strip().split("x")
    try:
        numbers = [int(p) for p in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(
            f"a size must be one number of pixels or HEIGHTxWIDTH, such as 96 or 96x128, got {text!r:.100}"
        )
    if min(numbers) <= 0:
        raise InputError(f"height and width must be positive, got size {text!r:.100}")
    return numbers[0], numbers[-1]


def format_size(size: Size) -> str:
    """Write a size as `parse_size` reads it.

    >>> format_size((64, 64)), format_size((96, 128))
    ('64', '96x128')
    """
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
