"""The arguments of a pipeline's call: the ones of a batch of images, and further ones that the user passes."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils import is_bs4_available, is_ftfy_available
from PIL import Image
from torch import Tensor

from entropy_probe.attention import find_denoiser, parts_of_denoiser
from entropy_probe.errors import CaptureError, InputError
from entropy_probe.models.sizes import Size, at_exact_size, format_size, image_arguments, training_size

_OWN = (
    "prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator", "batch_size", "output_type",
    "num_images_per_prompt", "return_dict", "latents", "use_resolution_binning",
)  # fmt: skip
"""Arguments that follow from the batch, or that would change the number or the type of its images."""

Scalar = str | int | float | bool | None


def takes_prompt(pipeline: Any) -> bool:
    """Return whether the call of a pipeline has a prompt. Unconditional and class-conditional pipelines have none.

    >>> class Pipeline:
    ...     def __call__(self, batch_size=1): ...
    >>> takes_prompt(Pipeline())
    False
    """
    return "prompt" in inspect.signature(type(pipeline).__call__).parameters


def takes_size(pipeline: Any, given: Mapping[str, Any]) -> bool:
    """Return whether a pipeline samples other sizes than its training size: by an argument, or by its images.

    >>> class Pipeline:
    ...     def __call__(self, batch_size=1): ...
    >>> takes_size(Pipeline(), {})
    False
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    return "height" in known or any(images(value) for value in given.values()) or bool(image_arguments(pipeline))


def check_call(pipeline: Any, sizes: Sequence[Size], given: Mapping[str, Any]) -> None:
    """Check the arguments that a user passes to the call of a pipeline.

    Raises:
        InputError: if an argument is unknown, missing or set by the sampling itself, or if the pipeline samples only
            its training size and `sizes` has another.

    >>> class Pipeline:
    ...     def __call__(self, prompt, image, height=None, width=None): ...
    >>> check_call(Pipeline(), [(64, 64)], {})
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: Pipeline needs 'image': pass pipeline_kwargs={'image': ...}, or --image FILE
    """
    name, known = type(pipeline).__name__, inspect.signature(type(pipeline).__call__).parameters
    for argument in given:
        if argument in _OWN:
            raise InputError(f"pipeline_kwargs cannot contain {argument!r}, which is set for every batch: remove it")
        if argument not in known:  # **kwargs of diffusers are deprecated names
            raise InputError(f"{name} has no argument {argument!r}; its arguments are: {', '.join([*known][1:])}")
    needed = [p.name for p in [*known.values()][1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if missing := [argument for argument in needed if argument not in given and argument not in _OWN]:
        raise InputError(_missing(name, missing))
    if "height" in known or any(images(value) for value in given.values()):
        return
    if absent := image_arguments(pipeline):  # the image has the size
        raise InputError(_missing(name, absent))
    trained = training_size(pipeline)
    if other := [size for size in sizes if size != trained]:
        raise InputError(f"{name} samples only {format_size(trained)} pixels, got size {format_size(other[0])}")


def call_arguments(
    pipeline: Any,
    prompts: Sequence[str],
    size: Size,
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the arguments that sample one batch: those that the pipeline accepts, and `given`.

    Images are resized to `size`. One negative prompt or class label is used for all images of the batch.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    usual = {
        "prompt": list(prompts),
        "batch_size": len(seeds),
        "height": size[0],
        "width": size[1],
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "output_type": "pil",
    }
    if not (is_bs4_available() and is_ftfy_available()):  # else diffusers says for each image that they are missing
        usual["clean_caption"] = False
    return {
        **{name: value for name, value in usual.items() if name in known},
        **at_exact_size(pipeline),
        **{name: _of_batch(name, value, size, len(seeds)) for name, value in given.items()},
    }


def describe(given: Mapping[str, Any]) -> dict[str, str]:
    """Return a description of each argument with a hash of its content, for the manifest.

    Raises:
        InputError: for a value other than images, tensors, texts, numbers, and lists and mappings of these.

    >>> describe({"strength": 0.5})
    {'strength': '0.5'}
    """
    return {name: _description(name, value) for name, value in given.items()}


@contextmanager
def explain_missing(pipeline: Any, given: Mapping[str, Any]) -> Iterator[None]:
    """Name image arguments that are missing, if a pipeline fails before its denoiser runs.

    Many pipelines have the default None for an image that they need, and fail with an error that does not name it.

    Raises:
        InputError: naming the arguments.
    """
    missing = [name for name in image_arguments(pipeline) if name not in given]
    if not missing:
        yield
        return
    ran: list[bool] = []
    parts = parts_of_denoiser(find_denoiser(pipeline)).values()
    hooks = [part.register_forward_pre_hook(lambda *_: ran.append(True)) for part in parts]
    try:
        yield
    except (InputError, CaptureError):
        raise
    except (TypeError, ValueError, AttributeError) as error:
        if ran:
            raise
        raise InputError(
            f"{_missing(type(pipeline).__name__, missing)} (it raised: {' '.join(str(error).split())[:200]})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def images(value: Any) -> list[Any]:
    """Return the images and image tensors of an argument."""
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if isinstance(one, Image.Image) or (isinstance(one, Tensor) and one.ndim in (3, 4))]


def _missing(pipeline: str, names: Sequence[str]) -> str:
    example = ", ".join(f"{name!r}: ..." for name in names)
    flag = "--image" if list(names) == ["image"] else "--pipeline-kwargs"
    return f"{pipeline} needs {' and '.join(map(repr, names))}: pass pipeline_kwargs={{{example}}}, or {flag} FILE"


def _of_batch(name: str, value: Any, size: Size, count: int) -> Any:
    if isinstance(value, str) and "prompt" in name:
        return [value] * count
    if name == "class_labels":
        labels = list(value) if isinstance(value, list | tuple) else [value]
        return labels * count if len(labels) == 1 else labels
    if name.startswith("ip_adapter"):  # has its own size
        return value
    if isinstance(value, list | tuple):
        return [_resized(name, one, size) for one in value]
    return _resized(name, value, size)


def _resized(name: str, value: Any, size: Size) -> Any:
    if isinstance(value, Image.Image) and value.size != (size[1], size[0]):
        resampling = Image.Resampling.NEAREST if "mask" in name else Image.Resampling.LANCZOS
        return value.resize((size[1], size[0]), resampling)
    is_image = isinstance(value, Tensor) and re.search("image|mask|video", name) and value.ndim in (3, 4)
    if is_image and tuple(value.shape[-2:]) != tuple(size):
        batch = value if value.ndim == 4 else value[None]
        is_mask = "mask" in name
        resized = F.interpolate(batch, size=size, mode="nearest" if is_mask else "bilinear", antialias=not is_mask)
        return resized if value.ndim == 4 else resized[0]
    return value


def _description(name: str, value: Any) -> str:
    if isinstance(value, Image.Image):
        content = value.tobytes()
        return f"{value.mode} image of {value.width}x{value.height} pixels, {_hash(content)}"
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} tensor of shape {tuple(value.shape)}, {_hash(content)}"
    if isinstance(value, list | tuple | Mapping):
        items = [*value.items()] if isinstance(value, Mapping) else value
        text = f"[{', '.join(_description(name, item) for item in items)}]"
    elif isinstance(value, Scalar):
        text = repr(value)
    else:
        raise InputError(
            f"pipeline_kwargs[{name!r}] must be images, tensors, texts or numbers, or a list of these, got "
            f"{type(value).__name__}"
        )
    return text if len(text) <= 1000 else f"{text[:100]}..., {_hash(text.encode())}"


def _hash(content: bytes) -> str:
    return f"blake2b {hashlib.blake2b(content, digest_size=8).hexdigest()}"
