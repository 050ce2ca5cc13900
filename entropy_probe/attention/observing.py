"""Pass the attention calls of a model to a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from entropy_probe.attention.call import Forward
from entropy_probe.attention.denoiser import (
    denoiser_name,
    find_denoiser,
    other_attention,
    parts_of_denoiser,
    refuse_compiled,
)
from entropy_probe.attention.hooks import PLACES, ForwardHook
from entropy_probe.attention.interception import Interception
from entropy_probe.attention.observer import Observer, OnCall
from entropy_probe.errors import CaptureError
from entropy_probe.interruption import delay_interrupt


@contextmanager
def attention_calls(
    model: Any,
    on_call: OnCall,
    *,
    after_scaling: bool = False,
    one_thread: bool = False,
    on_forward: Callable[[Forward], None] = lambda forward: None,
    after_discovery: Callable[[Observer], None] = lambda observer: None,
    training_frames: int | None = None,
) -> Iterator[Observer]:
    """Pass every attention call of a model to `on_call` until the context closes.

    Args:
        model: a diffusers pipeline, or the module whose forward runs attention.
        on_call: see `OnCall`.
        after_scaling: pass the calls as they are after all scaling, whichever context was opened first.
        one_thread: refuse a forward pass while another thread runs one.
        on_forward: receives each forward pass before it runs.
        after_discovery: is called with the observer after the first forward pass of each size.
        training_frames: frames of the videos in training. By default, those that the pipeline samples by default.

    Raises:
        CaptureError: for a compiled model.

    >>> import torch
    >>> class Attention(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.nn.functional.scaled_dot_product_attention(x, x, x)
    >>> model = Attention()
    >>> with attention_calls(model, lambda call: print(call.kind, tuple(call.query.shape), call.scale)):
    ...     output = model(torch.zeros(1, 2, 9, 4))
    self (1, 2, 9, 4) 0.5
    """
    observer = None
    try:
        with delay_interrupt():  # otherwise the observer might never be stopped
            observer = observe(
                model,
                on_call,
                after_scaling=after_scaling,
                one_thread=one_thread,
                on_forward=on_forward,
                after_discovery=after_discovery,
                training_frames=training_frames,
            )
        yield observer
    finally:
        if observer is not None:
            try:
                stop_observing(observer)
            finally:  # Ctrl-C may have come before the first attempt could delay it
                stop_observing(observer)


def observe(
    model: Any,
    on_call: OnCall,
    *,
    after_scaling: bool = False,
    one_thread: bool = False,
    on_forward: Callable[[Forward], None] = lambda forward: None,
    after_discovery: Callable[[Observer], None] = lambda observer: None,
    training_frames: int | None = None,
) -> Observer:
    """Start passing attention calls to `on_call`, until `stop_observing`; see `attention_calls`.

    Raises:
        CaptureError: for a compiled model, and for a model that contains another observed model or is a part of one.

    >>> from torch import nn
    >>> model = nn.MultiheadAttention(4, 2)
    >>> observer = observe(model, lambda call: 2.0)  # doubles the logits
    >>> interception_of(model).observers == (observer,)
    True
    >>> stop_observing(observer)
    >>> interception_of(model) is None
    True
    """
    denoiser = find_denoiser(model)
    refuse_compiled(denoiser)
    _refuse_overlap(denoiser)
    interception = interception_of(denoiser) or Interception(denoiser)
    interception.learn_training_size(model, training_frames)
    observer = Observer(
        on_call,
        after_scaling,
        one_thread,
        interception.tree.layers,
        on_forward,
        after_discovery,
        interception.discard,
    )
    observer.by_hand = interception.by_hand
    interception.add(observer)
    return observer


def stop_observing(observer: Observer) -> None:
    """Stop an observer that `observe` returned. The hooks are removed with the last observer."""
    with delay_interrupt():
        observer.stop(observer)


def interception_of(denoiser: nn.Module, alone: bool = True) -> Interception | None:
    """Return the interception of a denoiser, also of one that was compiled afterwards; None if it has none.

    Args:
        denoiser: the denoiser.
        alone: it is not one of two denoisers of the interception. False also finds the interception of a pipeline from
            which the other denoiser was removed.
    """
    if isinstance(denoiser, torch.jit.ScriptModule):  # `observe` refuses it
        return None
    compiled = denoiser._modules.get("_orig_mod")
    if compiled is not None:
        return interception_of(compiled, alone)
    first = next(iter(parts_of_denoiser(denoiser).values()))
    found = list(_interceptions(_original(first)))
    if not alone:
        roots = [(own, root) for own in found for root in own.roots.values()]
        return next((own for own, root in roots if _original(root) is _original(first)), None)
    return next((own for own in found if _is_same(own.denoiser, denoiser)), None)


def companions(model: Any, measured: bool) -> dict[str, nn.Module]:
    """Return the modules of a pipeline that run attention in the sampling steps and that nobody measures or scales.

    Args:
        model: a pipeline. A module has no companions.
        measured: leave out modules that are measured; otherwise, modules that are scaled.

    Returns:
        The modules by their name in the pipeline, such as `controlnet`.

    >>> companions(nn.Identity(), measured=True)
    {}
    """
    return {
        name: part
        for name, part in other_attention(model).items()
        if not any(
            observer.after_scaling == measured
            for module in part.modules()
            for interception in _interceptions(module)
            for observer in interception.observers
        )
    }


def _interceptions(module: nn.Module) -> Iterator[Interception]:
    """Yield the interceptions whose hooks are on a module: its own, and the ones of models that contain it."""
    for place in PLACES:
        forward = module.__dict__.get(place)
        while forward is not None:
            if isinstance(forward, ForwardHook) and forward.active and isinstance(forward.interceptor, Interception):
                yield forward.interceptor
            forward = getattr(forward, "__wrapped__", None)  # accelerate or another hook may have wrapped it


def _is_same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two denoisers are the same module, or contain the same modules, also if compiled meanwhile."""
    parts = [list(map(_original, parts_of_denoiser(denoiser).values())) for denoiser in (one, other)]
    return len(parts[0]) == len(parts[1]) and all(a is b for a, b in zip(*parts, strict=True))


def _original(module: nn.Module) -> nn.Module:
    """Return the module inside a compiled one; other modules as they are."""
    compiled = None if isinstance(module, torch.jit.ScriptModule) else module._modules.get("_orig_mod")
    return module if compiled is None else compiled


def _refuse_overlap(denoiser: nn.Module) -> None:
    """Refuse a model if some of its layers are already observed as layers of another model.

    Two interceptions of one layer cannot know each other's scale factors.
    """
    for module in denoiser.modules():
        for other in _interceptions(module):
            if not _is_same(other.denoiser, denoiser):
                whole, part = denoiser_name(other.denoiser), denoiser_name(denoiser)
                raise CaptureError(
                    f"{part} and {whole} share layers, and {whole} is already captured or scaled: remove its law or "
                    f"close its context first, or pass {whole} and select layers by name"
                )
