"""The scale factors of a law at one image size, for programs that do not contain the law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from entropy_probe.errors import InputError
from entropy_probe.laws.attach import scaled
from entropy_probe.laws.origin import Origin, sample_weights
from entropy_probe.laws.scaling import Tokens
from entropy_probe.laws.site import Factor, ScalingLaw
from entropy_probe.models import Size, check_size, fingerprint, format_size, layers, training_size, training_tokens


@dataclass(frozen=True)
class LayerFactor:
    """The scale factor of one layer at one image size.

    Attributes:
        layer: name of the attention layer.
        tokens: N: the number of image tokens, or of all tokens.
        joint: whether other tokens may attend in the same call.
        scale_factor: g: one number, or one per head.
        head_width: dimension of one head; 0 if it is unknown.
    """

    layer: str
    tokens: int
    joint: bool
    scale_factor: Factor
    head_width: int = 0


def factors_of_model(law: ScalingLaw, pipeline: Any, size: Size, tokens: Tokens = "image") -> list[LayerFactor]:
    """Return the factors that `scaled` applies to a pipeline at a size. The denoiser runs once.

    Args:
        law: the law.
        pipeline: the pipeline.
        size: (height, width) in pixels.
        tokens: what N and T count in joint attention; see `scaled`.

    Raises:
        InputError: if the pipeline cannot sample the size, or the law scales nothing.
    """
    check_size(pipeline, size)
    with scaled(pipeline, law, tokens=tokens) as scaling:
        found = {layer.name: layer for layer in layers(pipeline, size)}
    table = scaling.frame()
    if table.empty:
        raise InputError(f"the {law.name} law scales no layer of {type(pipeline).__name__}: there is nothing to export")
    if not (twice := table[table["layer"].duplicated()]).empty:
        raise InputError(
            f"layer {twice['layer'].iloc[0]!r} attends to several numbers of tokens in one step, so it has no single "
            "factor: apply the law with entropy_probe.scaled"
        )
    return [
        LayerFactor(layer, counted, found[layer].kind != "self", g, found[layer].head_width)
        for (layer, counted), (_, g) in scaling.factors.items()
    ]


def factors_of_origin(law: ScalingLaw, origin: Origin, size: Size) -> list[LayerFactor]:
    """Return the factors of the model that a law was derived on, without this model.

    Raises:
        InputError: if the tokens of a layer are not a grid of squares on the image of the training size.
    """
    found = []
    for layer, trained in origin.training_tokens.items():
        stride = math.sqrt(math.prod(origin.training_size) / trained)
        if abs(stride - round(stride)) > 1e-6 or any(side % round(stride) for side in origin.training_size):
            raise InputError(
                f"the tokens of layer {layer!r} at {format_size(size)} do not follow from its {trained} tokens at "
                f"{format_size(origin.training_size)}: name the model with --model, or pass model="
            )
        tokens = math.prod(-(-side // round(stride)) for side in size)
        found.append(LayerFactor(layer, tokens, True, law.scale_factor(layer, tokens, trained)))
    return found


def origin_of_model(pipeline: Any, name: str) -> Origin:
    """Return the record of a pipeline, for a law that is a formula.

    Args:
        pipeline: the pipeline.
        name: name that it can be loaded by.
    """
    return Origin(
        model=name,
        fingerprint=fingerprint(pipeline),
        pipeline=type(pipeline).__name__,
        training_size=training_size(pipeline),
        training_tokens=training_tokens(pipeline),
        weights=sample_weights(pipeline),
    )
