"""Attach a scaling law to a model, and remove it.

The model's attention hooks are the only record of an attached law; there is no registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from entropy_probe.attention import (
    Observer,
    attention_layers,
    check_frames,
    find_denoiser,
    interception_of,
    observe,
    stop_observing,
)
from entropy_probe.errors import InputError
from entropy_probe.interruption import delay_interrupt
from entropy_probe.laws.origin import check_origin, origin_of
from entropy_probe.laws.resolving import resolve
from entropy_probe.laws.scaling import Scaling, Tokens, TrainingTokens, check_positive, check_tokens
from entropy_probe.laws.site import ScalingLaw


def apply(
    model: Any,
    law: ScalingLaw | str | Path,
    *,
    training_tokens: TrainingTokens | None = None,
    training_frames: int | None = None,
    tokens: Tokens = "image",
) -> Scaling:
    """Multiply the logits of a model's visual attention by the g of a law, until `remove` is called.

    Self-attention and joint attention are scaled; cross-attention and temporal attention are not. A model that scales
    its own logits with its size, such as Lumina-Next, is left as it is at other sizes, with a warning. A deep copy of
    the model is not scaled. A model that is compiled afterwards stays scaled: its graph breaks at each attention layer.
    The first forward pass of each size warns of layers that it could not scale, and of other modules that run attention
    in the sampling steps, such as a ControlNet.

    Args:
        model: a diffusers pipeline or a torch module.
        law: a scaling law, its name, or the path of its JSON file.
        training_tokens: T of every layer as one number, or T per layer, if the model's configuration does not have it.
        training_frames: for videos, the number of frames that the model was trained on; see `attention.capture`.
        tokens: what N and T count in joint attention: `image` tokens only, or `all` tokens, as programs for Flux often
            do. The number of text tokens is the same in both.

    Returns:
        The law with the list of what it scales, which grows while the model runs.

    Raises:
        InputError: if the law or a layer is unknown, the model already has a law, or the law was derived on a model
            with other layers.
        CaptureError: if the model was compiled before.

    Warns:
        UserWarning: if the law was derived on a model with the same layers and other weights.

    >>> import torch
    >>> class Attention(torch.nn.Module):
    ...     def forward(self, query, key):
    ...         return torch.nn.functional.scaled_dot_product_attention(query, key, key)
    >>> model = Attention()
    >>> scaling = apply(model, "paper", training_tokens=64)
    >>> applied(model)
    Paper()
    >>> remove(model)
    """
    return _apply(model, law, training_tokens, training_frames, tokens)[1]


def _apply(
    model: Any,
    law: ScalingLaw | str | Path,
    training_tokens: TrainingTokens | None,
    training_frames: int | None,
    tokens: Tokens,
) -> tuple[Observer, Scaling]:
    """Apply a law; see `apply`. Return the observer that scales, and the law with what it scales."""
    check_unscaled(model)
    check_frames(training_frames)
    check_tokens(tokens)
    given = {} if training_tokens is None else training_tokens
    scaling, denoiser = Scaling(resolve(law), given, tokens, model), find_denoiser(model)
    _check_training_tokens(denoiser, given)
    if (origin := origin_of(scaling.law)) is not None:
        check_origin(origin, scaling.name, denoiser, bool(given))
    notice = partial(scaling.warn_of_unscaled, model, denoiser)
    return observe(model, scaling, after_discovery=notice, training_frames=training_frames), scaling


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
    model: Any,
    law: ScalingLaw | str | Path,
    *,
    training_tokens: TrainingTokens | None = None,
    training_frames: int | None = None,
    tokens: Tokens = "image",
) -> Iterator[Scaling]:
    """Apply a law inside a `with` block, then remove it. The arguments and the result are those of `apply`.

    Raises:
        InputError: see `apply`.
        CaptureError: see `apply`.

    >>> import torch
    >>> class Attention(torch.nn.Module):
    ...     def forward(self, query, key):
    ...         return torch.nn.functional.scaled_dot_product_attention(query, key, key)
    >>> model, query = Attention(), torch.ones(1, 1, 16, 4)
    >>> with scaled(model, "paper", training_tokens={"": 64}) as scaling:
    ...     output = model(query, query)
    >>> scaling.frame().round(3).to_dict("records")
    [{'layer': '', 'tokens': 16, 'training_tokens': 64, 'scale_factor': 0.816}]
    >>> applied(model)  # None: the law is removed
    """
    observer = None
    try:
        with delay_interrupt():  # otherwise the observer might never be stopped
            observer, scaling = _apply(model, law, training_tokens, training_frames, tokens)
        yield scaling
    finally:
        if observer is not None:
            try:
                stop_observing(observer)
            finally:  # Ctrl-C may have come before the first attempt could delay it
                stop_observing(observer)


def _check_training_tokens(denoiser: nn.Module, training_tokens: TrainingTokens) -> None:
    """Check that one number is positive, or that the layers of a mapping exist."""
    if isinstance(training_tokens, int):
        check_positive(training_tokens)
        return
    names = [name for name, _ in denoiser.named_modules()]
    if unknown := [name for name in training_tokens if name not in names]:
        known = ", ".join(map(repr, attention_layers(denoiser) or names))
        raise InputError(f"training_tokens names {unknown[0]!r}, which is not a layer of the model; layers: {known}")


def _scaling(model: Any) -> list[Observer]:
    interception = interception_of(find_denoiser(model), alone=False)
    return [o for o in interception.observers if isinstance(o.on_call, Scaling)] if interception else []
