"""Read from the pipeline that calls the denoiser how many images it samples, and which texts it guides with.

Pipelines do not pass this to the denoiser. It is in the local variables of their `__call__`, under the names that
diffusers gives them, and it is read again at each forward pass: guidance may end on the way, and two pipelines may
share a denoiser.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn

from entropy_probe.attention.denoiser import parts_of_denoiser, unwrap

NEGATIVE = re.compile(r"neg|uncond|null|empty")
"""Names of the empty or negative prompt, in any form."""

POSITIVE = re.compile(r"prompt|text|class|cond|caption|embed")
"""Names of the prompt, in any form. It may already be joined with the negative prompt."""

NO_TEXT = re.compile(r"mask|seqlens|lengths?$|_ids$|latents|noise|pred|^num_|size|crops|time")
"""Names of other variables, which match the patterns above."""

_NOT_CALLERS = (
    "torch.",
    "accelerate.",
    "diffusers.hooks",
    "entropy_probe.attention",
    "contextlib",
    "functools",
    "jaxtyping",
    "beartype",
)
"""Modules whose functions only pass the call on."""

_FRAMES = 100
"""Functions to go back at most."""


@dataclass(frozen=True)
class CallingPipeline:
    """What a pipeline knows about a forward pass that it starts.

    Attributes:
        pipeline: the pipeline; None if the denoiser runs without one.
        conventional: the code that calls the denoiser is diffusers' own, whose order of the parts is known.
        schedule: the timesteps of this run as the pipeline keeps them; None if it does not.
        images: number of images that it samples; None if unknown.
        negative: tensors of the negative prompt, or lists of them.
        positive: tensors of the prompt, or lists of them.
        degrades: it has degraded latents, as self-attention guidance has.
    """

    pipeline: Any = None
    conventional: bool = False
    schedule: Tensor | None = None
    images: int | None = None
    negative: tuple[Any, ...] = ()
    positive: tuple[Any, ...] = ()
    degrades: bool = False


def calling_pipeline(denoiser: nn.Module, model: Any) -> CallingPipeline:
    """Return what the pipeline knows that is calling the denoiser in this thread.

    Args:
        denoiser: the denoiser, whose forward has begun.
        model: what the user passed: the pipeline, or the denoiser.
    """
    pipeline = None if isinstance(model, nn.Module) else model
    variables: dict[str, Any] = {}
    found = conventional = False
    for number, frame in enumerate(_callers()):
        if number == 0:
            variables = dict(frame.f_locals)
        if "self" not in frame.f_code.co_varnames:
            continue
        own = frame.f_locals
        if found and own.get("self") is not pipeline:
            break
        if found or _runs(own.get("self"), denoiser):
            conventional = conventional or (not found and str(frame.f_globals.get("__name__")).startswith("diffusers."))
            pipeline, found = own["self"], True
            variables = {**own, **variables}
    if pipeline is None:
        return CallingPipeline()
    named = [
        pair
        for key, given in (*getattr(pipeline, "__dict__", {}).items(), *variables.items())
        for pair in flat(key, given)
    ]
    texts = [(name, value) for name, value in named if not NO_TEXT.search(name)]
    schedule = variables.get("timesteps")
    return CallingPipeline(
        pipeline=pipeline,
        conventional=found and conventional,
        schedule=schedule if isinstance(schedule, Tensor) else None,
        images=_images(variables),
        negative=tuple(value for name, value in texts if NEGATIVE.search(name)),
        positive=tuple(value for name, value in texts if POSITIVE.search(name) and not NEGATIVE.search(name)),
        degrades=any("degraded" in name for name in variables),
    )


def first_item_left(items: int, arguments: Mapping[str, Any]) -> int | None:
    """Return the first batch item that a wrapper of the denoiser left over; None if it cannot be found.

    diffusers' FasterCache passes on only a part of the batch. It passes views of the tensors that it received, and the
    place of a view in its tensor is the number of the item.

    Args:
        items: number of items left.
        arguments: what the wrapper received, by name.
    """
    whole = {
        value.untyped_storage().data_ptr(): value
        for value in arguments.values()
        if isinstance(value, Tensor) and value.ndim > 1 and not value.is_nested
    }
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame is None:
            return None
        if {"args", "kwargs"} <= {*frame.f_code.co_varnames}:
            passed = frame.f_locals
            for value in (*passed.get("args", ()), *passed.get("kwargs", {}).values()):
                if isinstance(value, Tensor) and not value.is_nested and value.ndim > 1 and len(value) == items:
                    own = whole.get(value.untyped_storage().data_ptr())
                    if own is not None and len(own) > items:
                        return (value.storage_offset() - own.storage_offset()) // own.stride(0)
        frame = frame.f_back
    return None


def _callers() -> Iterator[FrameType]:
    """Yield the running functions from the one that calls the denoiser outwards."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is None:
            return
        if not f"{frame.f_globals.get('__name__', '')}.".startswith(_NOT_CALLERS):
            yield frame
        frame = frame.f_back


def _runs(candidate: Any, denoiser: nn.Module) -> bool:
    """Whether an object is a pipeline of this denoiser, which may be its ControlNet or one of several."""
    if isinstance(candidate, nn.Module) or not hasattr(candidate, "__dict__"):
        return False
    parts = [part for part in vars(candidate).values() if isinstance(part, nn.Module)]
    own = parts_of_denoiser(denoiser).values()
    if any(part is one or unwrap(part) is one for part in parts for one in own):
        return True
    lists = [child for part in parts for child in part.children() if isinstance(child, nn.ModuleList)]
    return any(child is denoiser for several in lists for child in several)


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a variable, or the values of a dictionary of texts."""
    if isinstance(value, Mapping):
        yield from ((f"{name} {key}", one) for key, one in value.items())
    else:
        yield name, value


def _images(variables: Mapping[str, Any]) -> int | None:
    """Return the number of images from the variables of a pipeline."""
    for name in ("latents", "intermediate_images"):
        if isinstance(variables.get(name), Tensor) and variables[name].ndim > 2:
            return len(variables[name])
    batch = variables.get("batch_size")
    if not isinstance(batch, int):
        return None
    each = next(
        (variables[name] for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in variables), 1
    )
    return batch * each if isinstance(each, int) else None
