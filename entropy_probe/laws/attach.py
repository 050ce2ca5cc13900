"""Attach a scaling law to a model, and remove it.

The model's attention hooks are the only record of an attached law; there is no registry.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from entropy_probe.attention import (
    AttentionCall,
    Observer,
    attention_layers,
    find_denoiser,
    interception_of,
    observe,
    stop_observing,
)
from entropy_probe.errors import InputError
from entropy_probe.interruption import delay_interrupt
from entropy_probe.laws.formulas import Constant, Original, ScalingLaw
from entropy_probe.laws.resolving import resolve

MAX_FACTOR = 1e6
"""A larger scale factor can only come from a damaged law."""


@dataclass(frozen=True)
class _Scaling:
    """Scales the logits of visual attention by the g of a law."""

    law: ScalingLaw
    training_tokens: Mapping[str, int]

    def __call__(self, call: AttentionCall) -> float | None:
        if not call.visual or isinstance(self.law, Original):
            return None
        trained = self.training_tokens.get(call.layer, call.training_tokens)
        if trained is None and isinstance(self.law, Constant):  # the same g at every size
            trained = call.tokens
        if trained is None:
            raise InputError(
                f"the number of tokens of layer {call.layer!r} at the training size is unknown: "
                "pass training_tokens={layer: T}"
            )
        scale_factor = self.law.scale_factor(call.layer, call.tokens, trained)
        if not abs(scale_factor) <= MAX_FACTOR:  # also for NaN
            raise InputError(
                f"the {self.law.name} law has a scale factor of {scale_factor:g} for {call.tokens} tokens in layer "
                f"{call.layer!r}: it must be a number of at most {MAX_FACTOR:g}"
            )
        return None if scale_factor == 1.0 else scale_factor


def apply(model: Any, law: ScalingLaw | str | Path, *, training_tokens: Mapping[str, int] | None = None) -> None:
    """Multiply the logits of a model's visual attention by the g of a law, until `remove` is called.

    Self-attention and joint attention are scaled; cross-attention and temporal attention are not. N and T count image
    tokens only, also in joint attention. A deep copy of the model is not scaled. A model that is compiled afterwards
    stays scaled: its graph breaks at each attention layer. The first forward pass of each size warns of layers
    that it could not scale.

    Args:
        model: a diffusers pipeline or a torch module.
        law: a scaling law, its name, or the path of its JSON file.
        training_tokens: T per layer, if the model's configuration does not have it.

    Raises:
        InputError: if the law or a layer is unknown, or the model already has a law.
        CaptureError: if the model was compiled before.

    >>> import torch
    >>> class Attention(torch.nn.Module):
    ...     def forward(self, query, key):
    ...         return torch.nn.functional.scaled_dot_product_attention(query, key, key)
    >>> model = Attention()
    >>> apply(model, "paper", training_tokens={"": 64})
    >>> applied(model)
    Paper()
    >>> remove(model)
    """
    _apply(model, law, training_tokens)


def _apply(
    model: Any, law: ScalingLaw | str | Path, training_tokens: Mapping[str, int] | None
) -> tuple[Observer, ScalingLaw]:
    """Apply a law; see `apply`. Return the observer that scales, and the law."""
    check_unscaled(model)
    scaling = _Scaling(resolve(law), training_tokens or {})
    _check_names(find_denoiser(model), scaling.training_tokens)
    return observe(model, scaling, after_discovery=_warn_of_unscaled), scaling.law


def remove(model: Any) -> None:
    """Remove the law of a model. A model without a law is not changed."""
    for observer in _scaling(model):
        stop_observing(observer)


def applied(model: Any) -> ScalingLaw | None:
    """Return the law that is applied to a model, or None."""
    return next((observer.on_call.law for observer in _scaling(model)), None)  # type: ignore[attr-defined]


def check_unscaled(model: Any) -> None:
    """Reject a model that has a law. For functions that apply laws themselves, or that measure without one.

    Raises:
        InputError: if the model has a law.
    """
    present = applied(model)
    if present is not None:
        raise InputError(
            f"the {present.name} law is applied to this model: remove it first, with remove(). Functions such "
            "as sweep(laws=[...]) apply and remove laws themselves"
        )


@contextmanager
def scaled(
    model: Any, law: ScalingLaw | str | Path, *, training_tokens: Mapping[str, int] | None = None
) -> Iterator[ScalingLaw]:
    """Apply a law inside a `with` block, then remove it. The arguments are those of `apply`.

    Raises:
        InputError: see `apply`.
        CaptureError: see `apply`.

    >>> import torch
    >>> class Attention(torch.nn.Module):
    ...     def forward(self, query, key):
    ...         return torch.nn.functional.scaled_dot_product_attention(query, key, key)
    >>> model, query = Attention(), torch.ones(1, 1, 16, 4)
    >>> with scaled(model, "paper", training_tokens={"": 64}) as law:
    ...     print(law, model(query, query).shape)
    Paper() torch.Size([1, 1, 16, 4])
    >>> applied(model)  # None: the law is removed
    """
    observer = None
    try:
        with delay_interrupt():  # otherwise the observer might never be stopped
            observer, chosen = _apply(model, law, training_tokens)
        yield chosen
    finally:
        if observer is not None:
            try:
                stop_observing(observer)
            finally:  # Ctrl-C may have come before the first attempt could delay it
                stop_observing(observer)


def _warn_of_unscaled(observer: Observer) -> None:
    """Warn of the attention layers that ran without a call to scale, each of them once."""
    unscaled = [name for name in observer.layers if name in observer.ran and name not in observer.seen]
    new = [name for name in unscaled if name not in observer.warned]
    if not observer.seen and not observer.layers and "" not in observer.warned:
        warnings.warn(
            "no law was applied: the model ran, but did not call torch's scaled_dot_product_attention. Compute its "
            "attention with torch.nn.functional.scaled_dot_product_attention(query, key, value)",
            stacklevel=2,
        )
        observer.warned.add("")
    if new:
        warnings.warn(
            f"no law was applied in {len(unscaled)} of {len(observer.layers)} attention layers, such as {new[0]!r}: "
            "they do not call torch's scaled_dot_product_attention. Choose the native attention backend; linear "
            "attention and torch's nn.MultiheadAttention cannot be scaled",
            stacklevel=2,
        )
    unread = {layer: reason for layer, reason in observer.unread if layer not in observer.warned}
    for layer, reason in unread.items():
        warnings.warn(f"attention of {layer or 'the model itself'} was not scaled: {reason}", stacklevel=2)
    observer.warned.update(new, unread)


def _check_names(denoiser: nn.Module, training_tokens: Mapping[str, int]) -> None:
    names = [name for name, _ in denoiser.named_modules()]
    if unknown := [name for name in training_tokens if name not in names]:
        known = ", ".join(map(repr, attention_layers(denoiser) or names))
        raise InputError(f"training_tokens names {unknown[0]!r}, which is not a layer of the model; layers: {known}")


def _scaling(model: Any) -> list[Observer]:
    interception = interception_of(find_denoiser(model))
    return [o for o in interception.observers if isinstance(o.on_call, _Scaling)] if interception else []
