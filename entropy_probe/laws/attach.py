"""Putting a scaling law on a model, and taking it off.

The hooks on the denoiser are the only record of a law that is applied; there is no registry beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from entropy_probe.attention import AttentionCall, AttentionHooks, attention_layers, find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.laws.formulas import Original, ScalingLaw, resolve


class ScalingHooks(AttentionHooks):
    """The hooks that multiply the logits of visual attention by the g of a law."""

    def __init__(self, model: Any, law: ScalingLaw, training_tokens: Mapping[str, int] | None) -> None:
        self.law = law
        self._training_tokens = training_tokens or {}
        self._check_names(find_denoiser(model))
        super().__init__(model, self._scale_factor)

    def _check_names(self, denoiser: nn.Module) -> None:
        names = [name for name, _ in denoiser.named_modules()]
        if strange := [name for name in self._training_tokens if name not in names]:
            there = ", ".join(map(repr, attention_layers(denoiser) or names))
            raise InputError(
                f"training_tokens names {strange[0]!r}, which is no layer of the model; there are: {there}"
            )

    def _scale_factor(self, call: AttentionCall) -> float | None:
        if not call.visual or isinstance(self.law, Original):
            return None
        trained = self._training_tokens.get(call.layer, call.training_tokens)
        if trained is None:
            raise InputError(
                f"the tokens of layer {call.layer!r} at the training size are not known: "
                "pass training_tokens={layer: T}"
            )
        scale_factor = self.law.scale_factor(call.layer, call.tokens, trained)
        return None if scale_factor == 1.0 else scale_factor


def apply(model: Any, law: ScalingLaw | str | Path, *, training_tokens: Mapping[str, int] | None = None) -> None:
    """Scale the visual attention (self and joint, not cross, not temporal) of a model by a law, until `remove`.

    N and T count the image tokens, of joint attention too: the text does not grow with the image.

    Args:
        model: a diffusers pipeline or a torch module.
        law: a scaling law, its name, or the JSON file of one.
        training_tokens: T per layer, where the model's configuration does not tell.

    Raises:
        InputError: for an unknown law, a layer that the model does not have, or a model that has a law applied already.
    """
    check_unscaled(model)
    ScalingHooks(model, resolve(law), training_tokens)


def remove(model: Any) -> None:
    """Take the law off a model; one without a law is left as it is."""
    for hooks in _scaling_hooks(model):
        hooks.remove()


def applied(model: Any) -> ScalingLaw | None:
    """The law that is applied to a model now, if any."""
    return next((hooks.law for hooks in _scaling_hooks(model)), None)


def check_unscaled(model: Any) -> None:
    """Refuse a model that has a law applied: for what applies laws itself, or measures without any.

    Raises:
        InputError: for a model that has a law applied.
    """
    present = applied(model)
    if present is not None:
        raise InputError(
            f"the {present.name} law is applied to this model already: take it off with remove() first; what samples "
            "under laws, as sweep(laws=[...]) does, puts them on and takes them off itself"
        )


@contextmanager
def scaled(
    model: Any, law: ScalingLaw | str | Path, *, training_tokens: Mapping[str, int] | None = None
) -> Iterator[ScalingLaw]:
    """`apply` while the context is open; leaves the model as it was, to the bit."""
    apply(model, law, training_tokens=training_tokens)
    try:
        made = applied(model)
        assert made is not None
        yield made
    finally:
        remove(model)


def _scaling_hooks(model: Any) -> list[ScalingHooks]:
    owners = [getattr(hook, "__self__", None) for hook in find_denoiser(model)._forward_pre_hooks.values()]
    return [owner for owner in dict.fromkeys(owners) if isinstance(owner, ScalingHooks)]
