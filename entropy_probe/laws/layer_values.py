"""What several laws compute from: ln N / ln T, and the values of a layer."""

from __future__ import annotations

import math
from typing import Any

from entropy_probe.errors import InputError


def logarithm_ratio(tokens: int, training_tokens: int) -> float:
    """Return ln N / ln T; 1 where a logarithm is 0.

    >>> logarithm_ratio(4096, 64)
    2.0
    """
    return math.log(tokens) / math.log(training_tokens) if min(tokens, training_tokens) > 1 else 1.0


def of_layer(values: dict[str, Any], layer: str, law: str) -> Any:
    """Return the value of a layer, or the one of all layers under `*`.

    Raises:
        InputError: if the law has no value for this layer.

    >>> of_layer({"*": 0.5}, "mid", "kappa")
    0.5
    """
    if "*" in values:
        return values["*"]
    try:
        return values[layer]
    except KeyError:
        known = ", ".join(list(values)[:3]) or "none"
        raise InputError(
            f"the {law} law has no factor for layer {layer!r} (its layers: {known}, ...): it was derived on another "
            "model; derive it on this one"
        ) from None
