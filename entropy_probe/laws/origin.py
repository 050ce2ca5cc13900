"""The model that a law was derived on, and the check that a law is applied to the same one."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from entropy_probe.attention import attention_layers, denoiser_name, find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Finite, Side

SAMPLED_WEIGHTS = 64
"""Weights that identify a denoiser. Reading all of them would take seconds each time a law is applied."""

SAME_WEIGHT = 0.01
"""Relative difference of equal weights: they may be cast to half precision."""

_Name = Annotated[str, Field(max_length=4096)]
_Tokens = Annotated[int, Field(ge=1, le=2**53)]


@dataclass(frozen=True)
class Origin:
    """The model that a law was derived on.

    Attributes:
        model: name that the model can be loaded by.
        fingerprint: `models.fingerprint` of the pipeline.
        pipeline: class name of the pipeline.
        training_size: (height, width) in pixels.
        training_tokens: T of each layer.
        weights: some weights of the denoiser, which identify it quickly; empty if they are unknown.
        at_bounds: per layer, the numbers of tokens N at which the search for g reached a bound.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    model: _Name
    fingerprint: _Name
    pipeline: _Name
    training_size: tuple[Side, Side]
    training_tokens: dict[_Name, _Tokens]
    weights: Annotated[tuple[Finite, ...], Field(max_length=SAMPLED_WEIGHTS)] = ()
    at_bounds: dict[_Name, tuple[_Tokens, ...]] = field(default_factory=dict)


def sample_weights(model: Any) -> tuple[float, ...]:
    """Return weights of a denoiser, evenly spaced over its tensors. Empty if they cannot be read without loading them.

    Args:
        model: a pipeline or a denoiser.

    >>> sample_weights(nn.Linear(2, 1, bias=False).requires_grad_(False).apply(lambda m: m.weight.fill_(0.5)))
    (0.5,)
    """
    tensors = [tensor for tensor in find_denoiser(model).parameters() if tensor.is_floating_point()]
    if not tensors or any(tensor.is_meta or type(tensor) is not nn.Parameter for tensor in tensors):
        return ()
    count = min(SAMPLED_WEIGHTS, len(tensors))
    chosen = [tensors[number * len(tensors) // count] for number in range(count)]
    values: list[Tensor] = [tensor.detach().flatten()[tensor.numel() // 2].float().cpu() for tensor in chosen]
    return tuple(torch.stack(values).tolist())


def check_origin(origin: Origin, law: str, model: Any, given: bool) -> None:
    """Check that a law is applied to the model that it was derived on.

    Args:
        origin: the model that the law was derived on.
        law: name of the law.
        model: the pipeline or denoiser that it is applied to.
        given: the user gave T, and so chooses the layers, as for a ControlNet.

    Raises:
        InputError: if the model lacks layers of the law.

    Warns:
        UserWarning: if the layers are the same and the weights differ.
    """
    denoiser = find_denoiser(model)
    names = {name for name, _ in denoiser.named_modules()}
    missing = [layer for layer in origin.training_tokens if layer not in names]
    if missing and not given:
        known = ", ".join(attention_layers(denoiser)[:3]) or "none"
        raise InputError(
            f"the {law} law was derived on {origin.model!r:.200}, and {denoiser_name(denoiser)} lacks {len(missing)} "
            f"of its {len(origin.training_tokens)} layers, such as {missing[0]!r:.200} (layers here: {known}, ...): "
            "derive the law on this model"
        )
    weights = sample_weights(denoiser)
    if not missing and weights and origin.weights and not _same(weights, origin.weights):
        warnings.warn(
            f"the {law} law was derived on {origin.model!r:.200} (fingerprint {origin.fingerprint:.80}), and the "
            "weights of this model differ: derive the law on this model, or check its drift with validate()",
            stacklevel=2,
        )


def origin_of(law: Any) -> Origin | None:
    """Return the model that a law or a derivation was derived on; None if it is unknown or the law is a formula.

    >>> from entropy_probe.laws import Paper
    >>> origin_of(Paper()) is None
    True
    """
    found = getattr(getattr(law, "law", law), "origin", None)
    return found if isinstance(found, Origin) else None


def bounds_by_layer(rows: Mapping[str, Collection[Any]]) -> dict[str, tuple[int, ...]]:
    """Return `Origin.at_bounds` from the columns `layer` and `tokens` of a table.

    >>> bounds_by_layer({"layer": ["mid", "mid"], "tokens": [16, 256]})
    {'mid': (16, 256)}
    """
    found: dict[str, dict[int, None]] = {}
    for layer, tokens in zip(rows["layer"], rows["tokens"], strict=True):
        found.setdefault(str(layer), {})[int(tokens)] = None  # once, also if several heads reached a bound
    return {layer: tuple(tokens) for layer, tokens in found.items()}


def _same(weights: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return len(weights) == len(others) and all(
        abs(a - b) <= SAME_WEIGHT * max(abs(a), abs(b)) + 1e-6 for a, b in zip(weights, others, strict=True)
    )
