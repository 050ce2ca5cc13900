"""Write a law into the weights of a denoiser: queries that are g times as large have logits that are g times as large.

This holds exactly where the query is the output of a linear projection, or of a norm with weights after it. Rotary
embeddings come later and commute with a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from entropy_probe.attention import AttentionCall, attention_calls, find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.laws.attach import scaled
from entropy_probe.laws.factor_table import LayerFactor
from entropy_probe.laws.scaling import Tokens
from entropy_probe.laws.site import ScalingLaw
from entropy_probe.models import Size, format_size, layers

STREAMS = (("norm_q", "to_q", "to_qkv"), ("norm_added_q", "add_q_proj", "to_added_qkv"))
"""Names in diffusers of the norm, the projection and the fused projection of a query: of the image, and of the text."""

TOLERANCE = 0.02
"""Largest relative difference of mean queries. The rounding of half precision stays below it."""


def write_scaled_weights(
    law: ScalingLaw, factors: Sequence[LayerFactor], pipeline: Any, size: Size, out: Path, tokens: Tokens = "image"
) -> None:
    """Write the weights of a pipeline's denoiser, scaled by a law at one size, as a safetensors file.

    The result is verified: the denoiser runs once with the law and once with the scaled weights. The pipeline is left
    as it was.

    Args:
        law: the law.
        factors: its factors at this size.
        pipeline: the pipeline.
        size: (height, width) in pixels.
        out: the file.
        tokens: what N and T count in joint attention; see `scaled`.

    Raises:
        InputError: if the query of a layer cannot be scaled alone, or the file cannot be written.
    """
    denoiser = find_denoiser(pipeline)
    parts = [(part, _along(part, factor)) for factor in factors for part in query_weights(denoiser, factor.layer)]
    if len({part.data_ptr() for part, _ in parts}) < len(parts):
        raise InputError("two layers share the weights of their query, so they cannot have different factors")
    with scaled(pipeline, law, tokens=tokens):
        expected = _mean_queries(pipeline, size)
    with torch.no_grad(), _multiplied(parts):
        found = _mean_queries(pipeline, size)
        for layer in (factor.layer for factor in factors):
            if not torch.allclose(found[layer], expected[layer], rtol=TOLERANCE, atol=0.0):
                raise InputError(
                    f"scaling the query weights of layer {layer!r} does not scale its logits by the same factor: the "
                    "layer changes the query between its projection and the attention. Export with --to diffusers "
                    "instead"
                )
        _save(denoiser, law, size, out)


def query_weights(denoiser: nn.Module, layer: str) -> list[Tensor]:
    """Return the weights and biases that are proportional to the queries of a layer.

    Raises:
        InputError: if the layer has other parts than diffusers' attention classes, a norm without weights, an adapter,
            or quantized or offloaded weights.

    >>> from diffusers.models.attention_processor import Attention
    >>> [tuple(part.shape) for part in query_weights(nn.Sequential(Attention(8, heads=2, dim_head=4, bias=True)), "0")]
    [(8, 8), (8,)]
    """
    module = denoiser.get_submodule(layer)
    found: list[Tensor] = []
    for norm_name, single_name, fused_name in STREAMS:
        norm, single, fused = (getattr(module, name, None) for name in (norm_name, single_name, fused_name))
        if norm is not None and not isinstance(norm, nn.Identity):
            found += _parameters(norm, f"{layer}.{norm_name}")
        elif fused is not None:
            rows = fused.weight.shape[0] - 2 * _key_rows(module, fused)
            found += [part[:rows] for part in _parameters(fused, f"{layer}.{fused_name}")]
        elif single is not None:
            found += _parameters(single, f"{layer}.{single_name}")
    if not found:
        raise InputError(
            f"layer {layer!r} ({type(module).__name__}) has no query projection by the name to_q: export with --to "
            "diffusers instead"
        )
    return found


def _key_rows(module: nn.Module, fused: nn.Module) -> int:
    """Return the rows of the key in a fused projection, which has those of the query, the key and the value."""
    width = getattr(module, "inner_kv_dim", None)
    return int(width if isinstance(width, int) else getattr(fused, "out_features", 0) // 3)


def _parameters(part: nn.Module, name: str) -> list[Tensor]:
    weights = [weight for weight in (getattr(part, "weight", None), getattr(part, "bias", None)) if weight is not None]
    if not weights:
        raise InputError(f"{name} is a norm without weights, so the query cannot be scaled: export with --to diffusers")
    if list(part.children()) or not all(
        type(weight) is nn.Parameter and weight.is_floating_point() and not weight.is_meta for weight in weights
    ):
        raise InputError(
            f"the weights of {name} ({type(part).__name__}) cannot be scaled: fuse its adapters, and load the model "
            "without quantization and without offloading"
        )
    return [weight.detach() for weight in weights]


def _along(part: Tensor, factor: LayerFactor) -> Tensor:
    """Return the factor in a shape that multiplies a weight or bias, whose rows belong to the heads in order.

    Raises:
        InputError: if there is one factor per head, and the heads share the weights.
    """
    if isinstance(factor.scale_factor, float):
        return torch.tensor(factor.scale_factor)
    heads = len(factor.scale_factor)
    rows = part.shape[0] // heads
    if factor.head_width and factor.head_width != rows:
        raise InputError(
            f"the heads of layer {factor.layer!r} share the norm of their queries, so weights cannot have one factor "
            "per head: export with --to diffusers instead"
        )
    return torch.tensor(factor.scale_factor).repeat_interleave(rows).view(-1, *(1,) * (part.ndim - 1))


@contextmanager
def _multiplied(parts: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Multiply weights inside a `with` block, then restore them."""
    before = [part.clone() for part, _ in parts]
    try:
        for part, factor in parts:
            part.mul_(factor.to(part))
        yield
    finally:
        for (part, _), values in zip(parts, before, strict=True):
            part.copy_(values)


def _mean_queries(pipeline: Any, size: Size) -> dict[str, Float[Tensor, " heads"]]:
    """Return the mean absolute query of each head, times the scale of its logits. The denoiser runs once."""
    found: dict[str, Tensor] = {}

    def note(call: AttentionCall) -> None:
        if call.visual:
            found.setdefault(call.layer, call.query.abs().float().mean((0, 2, 3)).cpu() * call.scale)

    with torch.random.fork_rng(), attention_calls(pipeline, note, after_scaling=True):
        torch.manual_seed(0)
        layers(pipeline, size)
    return found


def _save(denoiser: nn.Module, law: ScalingLaw, size: Size, out: Path) -> None:
    record = {"law": law.name, "size": format_size(size), "denoiser": type(denoiser).__name__}
    weights = {name: values.detach().clone().contiguous() for name, values in denoiser.state_dict().items()}
    try:
        save_file(weights, out, metadata={"format": "pt", "entropy_probe": json.dumps(record)})
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
