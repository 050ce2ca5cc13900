"""A law on a model: it scales the attention calls, and lists what it has scaled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import nn

from entropy_probe.attention import AttentionCall, Observer, companions, find_unseen
from entropy_probe.errors import InputError
from entropy_probe.laws.formulas import Constant, Original, ScalingLaw

MAX_FACTOR = 1e6
"""A larger scale factor can only come from a damaged law."""

TrainingTokens = Mapping[str, int] | int
"""T per layer, or one number for every layer."""


def check_positive(training_tokens: int) -> None:
    """Raise InputError if T is not a positive number."""
    if isinstance(training_tokens, bool) or training_tokens < 1:
        raise InputError(
            f"training_tokens must be a positive number of tokens, got {training_tokens!r}: pass T of the layers"
        )


@dataclass(eq=False, repr=False)
class Scaling:
    """A law that is applied to a model, and what it has scaled. It has the name and the factors of its law.

    Attributes:
        law: the law.
        training_tokens: T per layer, or of every layer, as the user gave it.
        unscaled: the reason for each attention layer that ran, and that the law could not scale. It is complete
            after the first forward pass of a size. Cross-attention and temporal attention are not listed.
    """

    law: ScalingLaw
    training_tokens: TrainingTokens = field(default_factory=dict)
    unscaled: dict[str, str] = field(default_factory=dict, init=False)
    _scaled: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict, init=False)
    _others: set[str] = field(default_factory=set, init=False)

    @property
    def name(self) -> str:
        """Name of the law."""
        return self.law.name

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        """Return the g of the law."""
        return self.law.scale_factor(layer, tokens, training_tokens)

    def _given(self, layer: str) -> int | None:
        """Return the T that the user gave for a layer."""
        return self.training_tokens if isinstance(self.training_tokens, int) else self.training_tokens.get(layer)

    def frame(self) -> pd.DataFrame:
        """Return what the law has scaled so far: one row per layer and number of tokens.

        The columns are `layer`, `tokens` (N), `training_tokens` (T; NaN if unknown) and `scale_factor` (g). The law
        `original` scales nothing.
        """
        rows = [(*key, *values) for key, values in list(self._scaled.items())]
        return pd.DataFrame(rows, columns=["layer", "tokens", "training_tokens", "scale_factor"])

    def __repr__(self) -> str:
        frame = self.frame()
        if frame.empty:
            return f"{self.law!r}, which has scaled nothing so far"
        return f"{self.law!r} in {frame['layer'].nunique()} layers\n{frame.to_string(index=False)}"

    def __eq__(self, other: object) -> bool:
        return bool(self.law == (other.law if isinstance(other, Scaling) else other))

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, call: AttentionCall) -> float | None:
        """Return the g of an attention call; None to leave it unchanged."""
        given = self._given(call.layer)
        explicit = call.kind == "unknown" and given is not None
        if not explicit and call.kind == "unknown" and not self.training_tokens and call.forward.trained is None:
            raise InputError(
                f"the tokens of layer {call.layer!r} could not be related to an image, and the model has no training "
                "size: pass training_tokens=T, or {layer: T} for the layers to scale"
            )
        if not call.visual and not explicit:
            self._others.add(f"{call.axes} {call.kind}" if call.axes != "spatial" else call.kind)
            return None
        if isinstance(self.law, Original):
            return None
        if given is not None:
            check_positive(given)
        known = trained = call.training_tokens if given is None else given
        if trained is None and isinstance(self.law, Constant):  # the same g at every size
            trained = call.tokens
        if trained is None:
            raise InputError(
                f"the number of tokens of layer {call.layer!r} at the training size is unknown: "
                "pass training_tokens=T, or {layer: T}"
            )
        scale_factor = self.law.scale_factor(call.layer, call.tokens, trained)
        if not abs(scale_factor) <= MAX_FACTOR:  # also for NaN
            raise InputError(
                f"the {self.law.name} law has a scale factor of {scale_factor:g} for {call.tokens} tokens in layer "
                f"{call.layer!r}: it must be a number of at most {MAX_FACTOR:g}"
            )
        self._scaled[call.layer, call.tokens] = (math.nan if known is None else known, scale_factor)
        return None if scale_factor == 1.0 else scale_factor

    def warn_of_unscaled(self, model: Any, denoiser: nn.Module, observer: Observer) -> None:
        """Warn of attention that ran and was not scaled, once for each layer.

        Args:
            model: the pipeline or module that the law was applied to.
            denoiser: its denoiser.
            observer: the observer of this law.
        """
        unseen = find_unseen(denoiser, observer)
        invisible = dict.fromkeys(unseen.layers, "it did not call torch's scaled_dot_product_attention")
        unread = {layer: reason for layer, reason in observer.unread}
        unread |= dict.fromkeys(
            sorted(layer for layer in observer.unknown if self._given(layer) is None),
            "its number of tokens has no relation to the image that could be found; pass training_tokens={layer: T} to "
            "scale it",
        )
        self.unscaled |= invisible | unread
        texts = {
            layer: f"attention of {layer or 'the model itself'} was not scaled: {why}" for layer, why in unread.items()
        }
        for part, module in companions(model, measured=False).items():
            texts[f"pipe.{part}"] = (
                f"the {self.name} law is not applied to the attention of pipe.{part} ({type(module).__name__}), which "
                f"also runs in the sampling steps: apply the law to pipe.{part} too"
            )
        if not self.unscaled and (nothing := self._nothing(bool(observer.seen))):
            texts[""] = nothing
        if new := [layer for layer in unseen.layers if layer not in observer.warned]:
            texts[new[0]] = (
                f"no law was applied in {len(invisible)} of {unseen.total} attention layers, which ran, but did not "
                f"call torch's scaled_dot_product_attention: {unseen.names}. {unseen.remedy}"
            )
        for key, text in texts.items():
            if key not in observer.warned:
                warnings.warn(text, stacklevel=2)
        observer.warned.update(texts, invisible)

    def _nothing(self, seen: bool) -> str | None:
        """Return why the law reaches no attention at all, although none is invisible; None if it reaches some."""
        if not seen:
            return (
                "no law was applied: the model ran, but did not call torch's scaled_dot_product_attention. Compute "
                "its attention with torch.nn.functional.scaled_dot_product_attention(query, key, value)"
            )
        if self._scaled or not self._others or isinstance(self.law, Original):
            return None
        return (
            f"no law was applied: the model has {', '.join(sorted(self._others))} attention only, and laws scale the "
            "self-attention and joint attention of image tokens"
        )
