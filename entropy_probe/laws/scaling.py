"""A law on a model: it scales the attention calls, and lists what it has scaled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import nn

from entropy_probe.attention import AttentionCall, Observer, ScaleFactor, companions, find_unseen
from entropy_probe.errors import InputError
from entropy_probe.laws.formulas import Constant, Original
from entropy_probe.laws.noise import NoiseLevel
from entropy_probe.laws.origin import origin_of
from entropy_probe.laws.site import Factor, ScalingLaw, Site, factor_at
from entropy_probe.statistics import default_scale

MAX_BASE = 2**20
"""Largest number of tokens that a model's own scale refers to. Any scale is close to that of some larger number."""

Tokens = Literal["image", "all"]
"""What N and T count in joint attention. Programs for Flux often count all tokens."""

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


def check_tokens(tokens: object) -> None:
    """Raise InputError if `tokens` is not one of `Tokens`."""
    if tokens not in get_args(Tokens):
        raise InputError(f"tokens must be 'image' or 'all', got {tokens!r:.100}")


@dataclass(eq=False, repr=False)
class Scaling:
    """A law that is applied to a model, and what it has scaled. It has the name and the factors of its law.

    Attributes:
        law: the law.
        training_tokens: T per layer, or of every layer, as the user gave it.
        tokens: what N and T count in joint attention: `image` tokens, or `all` tokens.
        model: what the law is applied to.
        unscaled: the reason for each attention layer that ran, and that the law could not scale. It is complete
            after the first forward pass of a size. Cross-attention and temporal attention are not listed.
        factors: per layer and N: T (NaN if unknown), and the latest g: one number, or one per head.
    """

    law: ScalingLaw
    training_tokens: TrainingTokens = field(default_factory=dict)
    tokens: Tokens = "image"
    model: Any = None
    unscaled: dict[str, str] = field(default_factory=dict, init=False)
    factors: dict[tuple[str, int], tuple[int | float, Factor]] = field(default_factory=dict, init=False)
    _others: set[str] = field(default_factory=set, init=False)
    _own: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._noise = NoiseLevel(self.model)

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

        The columns are `layer`, `tokens` (N), `training_tokens` (T; NaN if unknown) and `scale_factor` (g; the mean of
        the heads). The law `original` scales nothing. If g changes with the noise level, it is the latest one.
        """
        rows = [(*key, trained, _mean(g)) for key, (trained, g) in list(self.factors.items())]
        return pd.DataFrame(rows, columns=["layer", "tokens", "training_tokens", "scale_factor"])

    def __repr__(self) -> str:
        frame = self.frame()
        if frame.empty:
            return f"{self.law!r}, which has scaled nothing so far"
        return f"{self.law!r} in {frame['layer'].nunique()} layers\n{frame.to_string(index=False)}"

    def __eq__(self, other: object) -> bool:
        return bool(self.law == (other.law if isinstance(other, Scaling) else other))

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, call: AttentionCall) -> ScaleFactor:
        """Return the g of an attention call, or one number per head; None to leave it unchanged."""
        explicit = call.kind == "unknown" and self._given(call.layer) is not None
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
        known, trained = self._trained(call)
        if (own := _own_factor(call)) is not None:
            self.unscaled[call.layer] = f"the model already multiplies its logits by {own:.4g}"
            self._own[call.layer] = own
            return None
        extra = call.key.shape[2] - call.tokens if self.tokens == "all" and call.kind == "joint" else 0
        site = self._site(call, call.tokens + extra, trained + extra)
        factor = factor_at(self.law, site)
        numbers = (factor,) if isinstance(factor, int | float) else factor
        if wrong := [g for g in numbers if not abs(g) <= MAX_FACTOR]:  # also for NaN
            raise InputError(
                f"the {self.law.name} law has a scale factor of {wrong[0]:g} for {site.tokens} tokens in layer "
                f"{call.layer!r}: it must be a number of at most {MAX_FACTOR:g}"
            )
        if len(numbers) > 1 and len(numbers) != call.query.shape[1]:
            raise InputError(
                f"the {self.law.name} law has {len(numbers)} factors for the {call.query.shape[1]} heads of layer "
                f"{call.layer!r}: return one number, or one number per head"
            )
        self.factors[call.layer, site.tokens] = (known + extra, factor)
        if all(g == 1.0 for g in numbers):
            return None
        return numbers[0] if len(numbers) == 1 else torch.tensor(numbers)

    def _trained(self, call: AttentionCall) -> tuple[int | float, int]:
        """Return T as it is known, which is NaN if unknown, and T for the law."""
        given = self._given(call.layer)
        if given is not None:
            check_positive(given)
        trained = call.training_tokens if given is None else given
        if trained is None and (origin := origin_of(self.law)) is not None:
            trained = origin.training_tokens.get(call.layer)
        if trained is not None:
            return trained, trained
        if isinstance(self.law, Constant):  # the same g at every size
            return math.nan, call.tokens
        raise InputError(
            f"the number of tokens of layer {call.layer!r} at the training size is unknown: "
            "pass training_tokens=T, or {layer: T}"
        )

    def _site(self, call: AttentionCall, tokens: int, trained: int) -> Site:
        now = call.grid
        then = now.at(call.forward.trained) if now is not None and call.forward.trained is not None else None
        return Site(
            call.layer,
            tokens,
            trained,
            heads=call.query.shape[1],
            grid=None if now is None else (now.height, now.width),
            training_grid=None if then is None else (then.height, then.width),
            noise_level=self._noise.of(call.forward) if hasattr(self.law, "factor_at") else None,
        )

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
        if self._own:
            texts["own"] = (
                f"the {self.name} law was not applied in {len(self._own)} attention layers, because the model already "
                f"multiplies their logits by {max(self._own.values()):.4g} at this size (proportional attention): pass "
                "proportional_attn=False to the pipeline to apply the law instead"
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
        if self.factors or not self._others or isinstance(self.law, Original):
            return None
        return (
            f"no law was applied: the model has {', '.join(sorted(self._others))} attention only, and laws scale the "
            "self-attention and joint attention of image tokens"
        )


def _mean(factor: Factor) -> float:
    return float(factor) if isinstance(factor, int | float) else sum(factor) / len(factor)


def _own_factor(call: AttentionCall) -> float | None:
    """Return the factor of a model that scales its own logits with its size, as Lumina does; None for others.

    Its factor is sqrt(ln N / ln b) with a whole number of tokens b, so b is recovered from N and the scale.
    """
    own = call.scale / default_scale(call.query)
    keys = call.key.shape[2]
    if abs(own - 1) < 1e-9 or own <= 0 or keys < 2:
        return None
    base = math.exp(min(20.0, math.log(keys) / own**2))
    return own if 1.5 < base < MAX_BASE and abs(base - round(base)) < 1e-11 * base else None
