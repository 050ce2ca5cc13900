"""The definition of the statistics, in float64 with full attention maps. The reference for every other kernel."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entropy_probe.statistics.masks import MASKED_BIAS, check_one_mask
from entropy_probe.statistics.rows import RowStatistics, default_scale, precise_dtype


def dense(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None = None,
) -> RowStatistics:
    """Compute the statistics of every attention row from the full attention map.

    With s = scale * query @ key^T + mask and A = softmax(s) over the keys:

    - entropy H_i = -sum_j A_ij ln A_ij, nats;
    - logit variance: variance of s_ij over the allowed keys j, equal weights, nats^2;
    - attention distance D_i = sqrt(sum_j A_ij |x_i - x_j|^2), in the unit of `positions`.

    Args:
        query: queries, as for `scaled_dot_product_attention`.
        key: keys; with `enable_gqa`, `heads` is a multiple of `kv_heads`.
        mask: boolean (True = may attend) or additive, broadcastable to (batch, heads, queries, keys).
        is_causal: query i attends to keys j <= i only.
        scale: softmax scale; by default 1/sqrt(width).
        enable_gqa: `heads / kv_heads` consecutive query heads share a key head.
        positions: 2-D token centres of the queries and of the keys, for the attention distance.

    Returns:
        One value per row, in float64 (float32 on devices without float64). Rows whose keys are all masked have
        entropy 0 and are not counted.

    Raises:
        ValueError: for a mask combined with `is_causal`.

    Source: Jin et al. 2023 (arXiv 2306.08645) for the entropy.

    >>> uniform = dense(torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 8, 4))  # equal logits: H = ln 8
    >>> uniform.entropy.exp().round(decimals=2)
    tensor([[[8., 8.]]], dtype=torch.float64)
    """
    precise = precise_dtype(query.device)
    scale = default_scale(query) if scale is None else scale
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = scale * (query.to(precise) @ key.to(precise).transpose(-1, -2))
    allowed = torch.ones_like(logits, dtype=torch.bool)
    check_one_mask(mask, is_causal)
    if is_causal:
        allowed = allowed.tril()
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    elif mask is not None:
        logits = logits + mask.to(precise)
        allowed = allowed & (mask > MASKED_BIAS)
    return _from_logits(logits, allowed, positions)


def _from_logits(
    logits: Float[Tensor, "batch heads queries keys"],
    allowed: Bool[Tensor, "batch heads queries keys"],
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None = None,
) -> RowStatistics:
    count = allowed.sum(-1)
    counted = count > 0
    masked = logits.masked_fill(~allowed, -math.inf)
    log_attention = masked.log_softmax(-1)
    attention = log_attention.exp().masked_fill(~allowed, 0.0)
    entropy = -(attention * log_attention.masked_fill(~allowed, 0.0)).sum(-1)
    bound = count.clamp_min(1).to(logits.dtype).log()

    kept = logits.masked_fill(~allowed, 0.0)
    mean = kept.sum(-1, keepdim=True) / count.clamp_min(1).unsqueeze(-1)
    variance = (kept - mean).square().masked_fill(~allowed, 0.0).sum(-1) / count.clamp_min(1)

    distance = None
    if positions is not None:
        query_positions, key_positions = (p.to(attention.dtype) for p in positions)
        squared = (query_positions[:, None] - key_positions[None]).square().sum(-1)
        distance = (attention * squared).sum(-1).sqrt()
    return RowStatistics(
        entropy=entropy.clamp_min(0).minimum(bound).masked_fill(~counted, 0.0),
        logit_variance=variance,
        log_sum=masked.logsumexp(-1),
        logit_mean=mean.squeeze(-1),
        attention_distance=distance,
        counted=counted,
    )
