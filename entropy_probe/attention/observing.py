"""Pass the attention calls of a model to a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from entropy_probe.attention.denoiser import find_denoiser, refuse_compiled
from entropy_probe.attention.hooks import ForwardHook
from entropy_probe.attention.interception import Interception
from entropy_probe.attention.observer import Observer, OnCall


@contextmanager
def attention_calls(
    model: Any, on_call: OnCall, *, after_scaling: bool = False, one_thread: bool = False
) -> Iterator[Observer]:
    """Pass every attention call of a model to `on_call` until the context closes.

    Args:
        model: a diffusers pipeline, or the module whose forward runs attention.
        on_call: see `OnCall`.
        after_scaling: pass the calls as they are after all scaling, whichever context was opened first.
        one_thread: refuse a forward while another thread runs one.

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
    denoiser, observer = find_denoiser(model), None  # the pipeline may contain another one when the context closes
    try:
        observer = observe(model, on_call, after_scaling=after_scaling, one_thread=one_thread)
        yield observer
    finally:
        if observer is not None:
            stop_observing(denoiser, observer)


def observe(
    model: Any,
    on_call: OnCall,
    *,
    after_scaling: bool = False,
    one_thread: bool = False,
    after_discovery: Callable[[Observer], None] = lambda observer: None,
) -> Observer:
    """Start passing attention calls to `on_call`, until `stop_observing`; see `attention_calls`.

    `after_discovery` receives the observer after the first forward of each size.

    >>> from torch import nn
    >>> model = nn.MultiheadAttention(4, 2)
    >>> observer = observe(model, lambda call: 2.0)  # doubles the logits
    >>> interception_of(model).observers == (observer,)
    True
    >>> stop_observing(model, observer)
    >>> interception_of(model) is None
    True
    """
    denoiser = find_denoiser(model)
    refuse_compiled(denoiser)
    interception = interception_of(denoiser) or Interception(denoiser)
    interception.learn_training_size(model)
    observer = Observer(on_call, after_scaling, one_thread, interception.tree.layers, after_discovery)
    interception.add(observer)
    return observer


def stop_observing(model: Any, observer: Observer) -> None:
    """Stop an observer that `observe` returned. The hooks are removed with the last observer."""
    interception = interception_of(find_denoiser(model))
    if interception is not None:
        interception.discard(observer)


def interception_of(denoiser: nn.Module) -> Interception | None:
    """Return the interception of a denoiser, also of one that was compiled afterwards; None if it has none."""
    compiled = denoiser._modules.get("_orig_mod")
    if compiled is not None:
        return interception_of(compiled)
    forward = denoiser.__dict__.get("forward")
    while forward is not None:
        own = forward.interceptor if isinstance(forward, ForwardHook) and forward.active else None
        if isinstance(own, Interception) and own.denoiser is denoiser:  # not that of a model that contains this one
            return own
        forward = getattr(forward, "__wrapped__", None)  # accelerate or another hook may have wrapped it
    return None
