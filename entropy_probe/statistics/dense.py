"""The definition, in float64, with every attention map written out. The other implementations are compared with it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entropy_probe.statistics.rows import BARRED, RowStatistics, default_scale, precise_dtype


def dense(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None = None,
) -> RowStatistics:
    """Statistics of every attention row from the full map of probabilities.

    With s = scale * query @ key^T + mask and A = softmax(s) over the keys:
    entropy H_i = -sum_j A_ij ln A_ij (nats), logit variance over the allowed keys (nats^2), and attention distance
    D_i = sqrt(sum_j A_ij |x_i - x_j|^2) in the unit of `positions`.

    Args:
        query: queries as `scaled_dot_product_attention` takes them.
        key: keys; with `enable_gqa`, `heads` is a multiple of `kv_heads`.
        mask: boolean (true = may attend) or additive, broadcastable to (batch, heads, queries, keys).
        is_causal: query i attends to keys j <= i only.
        scale: softmax scale, 1/sqrt(width) when none is given.
        enable_gqa: let `heads / kv_heads` consecutive query heads share a key head.
        positions: places of the queries and of the keys in the plane, for the attention distance.

    Returns:
        A value per row, in float64 (float32 where the device has no float64); rows that may attend to no key have
        entropy 0 and are marked as not counted.

    Raises:
        ValueError: for a mask together with `is_causal`.

    Source: Jin et al. 2023 (arXiv 2306.08645) for the entropy.
    """
    precise = precise_dtype(query.device)
    scale = default_scale(query) if scale is None else scale
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = scale * (query.to(precise) @ key.to(precise).transpose(-1, -2))
    allowed = torch.ones_like(logits, dtype=torch.bool)
    if is_causal and mask is not None:
        raise ValueError("give a mask or is_causal, not both: scaled_dot_product_attention takes one of them")
    if is_causal:
        allowed = allowed.tril()
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    elif mask is not None:
        logits = logits + mask.to(precise)
        allowed = allowed & (mask > BARRED)
    return from_logits(logits, allowed, positions)


def from_logits(
    logits: Float[Tensor, "batch heads queries keys"],
    allowed: Bool[Tensor, "batch heads queries keys"],
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None = None,
) -> RowStatistics:
    """Statistics of the rows of a map of logits; keys that are not allowed have no weight."""
    count = allowed.sum(-1)
    counted = count > 0
    weighed = logits.masked_fill(~allowed, -math.inf)
    log_map = weighed.log_softmax(-1)
    attention = log_map.exp().masked_fill(~allowed, 0.0)
    entropy = -(attention * log_map.masked_fill(~allowed, 0.0)).sum(-1)
    bound = count.clamp_min(1).log()

    kept = logits.masked_fill(~allowed, 0.0)
    mean = kept.sum(-1, keepdim=True) / count.clamp_min(1).unsqueeze(-1)
    variance = (kept - mean).square().masked_fill(~allowed, 0.0).sum(-1) / count.clamp_min(1)

    distance = None
    if positions is not None:
        there, here = (p.to(attention.dtype) for p in reversed(positions))
        squared = (here[:, None] - there[None]).square().sum(-1)
        distance = (attention * squared).sum(-1).sqrt()
    return RowStatistics(
        entropy=entropy.clamp_min(0).minimum(bound).masked_fill(~counted, 0.0),
        logit_variance=variance,
        log_sum=weighed.logsumexp(-1),
        logit_mean=mean.squeeze(-1),
        attention_distance=distance,
        counted=counted,
    )
