"""Exact statistics of every attention row in O(N) memory: no attention map is ever built.

With s_ij = scale * <q_i, k_j> and A = softmax(s), the sum over the keys in

    H_i = logsumexp_j(s_ij) - sum_j A_ij s_ij

is itself an attention with the keys as values: sum_j A_ij s_ij = scale * <q_i, sum_j A_ij k_j>. One fused attention
call therefore gives both terms. A bias m_j on the keys rides along as one more coordinate (1/scale on the query, m_j on
the key), and the positions of the keys as more values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entropy_probe.statistics.dense import dense
from entropy_probe.statistics.rows import MASKED, RowStatistics, default_scale, precise_dtype

LARGE_LOGIT = 16.0
"""Where the log-sum-exp of centred logits exceeds this many nats, float32 no longer holds 1e-5 in its difference."""

BLOCK_LOGITS = 2**20
"""Logits held at once where no fused kernel serves (8 MiB in float64)."""


def flash(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None = None,
) -> RowStatistics:
    """Statistics of every attention row, equal to `dense`, in memory linear in the number of tokens.

    Arguments and meaning are those of `dense`; half precision is computed in float32. No mask, or one that is the same
    for every query, takes one fused attention call. Causal and per-query masks go by blocks of rows.

    Raises:
        ValueError: for a mask together with `is_causal`.
    """
    scale = default_scale(query) if scale is None else scale
    if is_causal and mask is not None:
        raise ValueError("give a mask or is_causal, not both: scaled_dot_product_attention takes one of them")
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    if is_causal or not _same_for_all_queries(mask) or query.device.type not in _KERNELS:
        return _by_blocks(query, key, mask, is_causal, scale, positions)
    dtype = torch.promote_types(query.dtype, torch.float32)
    result, largest = _fused(query.to(dtype), key.to(dtype), mask, scale, positions)
    if dtype == torch.float64 or largest <= LARGE_LOGIT:
        return result
    if query.device.type == "cpu":
        return _fused(query.double(), key.double(), mask, scale, positions)[0]
    return _by_blocks(query, key, mask, is_causal, scale, positions)


def _fused(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> tuple[RowStatistics, float]:
    """The statistics, and the largest log-sum-exp of a row: a measure of the digits that the difference has lost."""
    if mask is None:
        return _unmasked(query, key, scale, positions)
    allowed, bias = _key_bias(mask, key)
    count = allowed.sum(-1, keepdim=True).clamp_min(1)
    weight = (allowed / count).to(query.dtype).unsqueeze(-1)
    value = torch.cat([key, bias.unsqueeze(-1)], -1)
    value = value - (weight * value).sum(-2, keepdim=True)
    query = torch.cat([query, torch.full_like(query[..., :1], 1 / scale)], -1)
    barred = torch.cat([value[..., :-1], value[..., -1:].masked_fill(~allowed.unsqueeze(-1), MASKED)], -1)
    variance = _logit_variance(query, (weight * value).mT @ value, scale)
    entropy, distance, log_sum = _attend(query, barred, value, scale, positions)
    counted = allowed.any(-1, keepdim=True).expand_as(entropy)
    statistics = RowStatistics(
        entropy=entropy.clamp_min(0).minimum(count.log()).masked_fill(~counted, 0.0),
        logit_variance=variance.masked_fill(~counted, 0.0),
        attention_distance=distance,
        counted=counted,
    )
    return statistics, log_sum.masked_fill(~counted, 0.0).max().item()


def _unmasked(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> tuple[RowStatistics, float]:
    """As `_fused`, for the common case, in as few operations as it takes."""
    keys = key.shape[-2]
    key = key - key.mean(-2, keepdim=True)
    entropy, distance, log_sum = _attend(query, key, key, scale, positions)
    statistics = RowStatistics(
        entropy=entropy.clamp_(0, math.log(keys)),
        logit_variance=_logit_variance(query, key.mT @ key / keys, scale),
        attention_distance=distance,
        counted=torch.ones((), dtype=torch.bool, device=key.device).expand_as(entropy),
    )
    return statistics, log_sum.max().item()


def _attend(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    value: Float[Tensor, "batch heads keys width"],
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> tuple[
    Float[Tensor, "batch heads queries"],
    Float[Tensor, "batch heads queries"] | None,
    Float[Tensor, "batch heads queries"],
]:
    """Entropy, attention distance and log-sum-exp of every row, from one fused call; `value` is the key, unbarred."""
    width = query.shape[-1]
    places = 0 if positions is None else 3
    seen, columns = query, places + -(width + places) % 4
    if columns:
        extra = query.new_zeros(key.shape[-2], columns)
        if positions is not None:
            extra[:, :2] = positions[1]
            extra[:, 2] = positions[1].square().sum(-1)
        # The query is zero in the columns where the places stand, so the keys may carry them too.
        extended = torch.cat([value, extra.expand(*value.shape[:-1], columns)], -1)
        key = extended if key is value else F.pad(key, (0, columns))
        value, seen = extended, F.pad(query, (0, columns))
    out, log_sum = _KERNELS[query.device.type](seen, key, value, scale)
    entropy = log_sum - scale * torch.linalg.vecdot(query, out[..., :width])
    if positions is None:
        return entropy, None, log_sum
    here = positions[0].to(query.dtype)
    form = torch.cat([-2 * here, torch.ones_like(here[:, :1])], -1)
    squared = torch.linalg.vecdot(out[..., width : width + 3], form) + here.square().sum(-1)
    return entropy, squared.clamp_min(0).sqrt(), log_sum


def _logit_variance(
    query: Float[Tensor, "batch heads queries width"],
    covariance: Float[Tensor, "batch heads width width"],
    scale: float,
) -> Float[Tensor, "batch heads queries"]:
    """Variance over the keys of scale * <q, k>: a quadratic form in the keys' covariance."""
    variance: Tensor = scale**2 * torch.linalg.vecdot(query @ covariance, query)
    return variance.clamp_min(0)


def _key_bias(
    mask: Shaped[Tensor, "*#mask"], key: Float[Tensor, "batch heads keys width"]
) -> tuple[Bool[Tensor, "batch heads keys"], Float[Tensor, "batch heads keys"]]:
    """Which keys may be attended, and what a mask that is the same for every query adds to their logits."""
    row = mask.squeeze(-2) if mask.ndim > 1 else mask
    if mask.dtype == torch.bool:
        allowed = row.expand(key.shape[:-1])
        return allowed, torch.zeros_like(key[..., 0])
    row = row.to(key.dtype).expand(key.shape[:-1])
    allowed = row > MASKED
    return allowed, row.masked_fill(~allowed, 0.0)


def _same_for_all_queries(mask: Shaped[Tensor, "*#mask"] | None) -> bool:
    return mask is None or mask.ndim < 2 or mask.shape[-2] == 1


def _by_blocks(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    is_causal: bool,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> RowStatistics:
    """The definition, on blocks of query rows that hold `BLOCK_LOGITS` logits at once."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    if is_causal:
        below = torch.arange(keys, device=key.device)
    key = key.to(precise_dtype(key.device))
    rows = max(1, BLOCK_LOGITS // max(1, batch * heads * keys))
    parts = []
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        part = mask if _same_for_all_queries(mask) else mask[..., start:stop, :]  # type: ignore[index]
        if is_causal:
            part = below <= torch.arange(start, stop, device=key.device)[:, None]
        here = None if positions is None else (positions[0][start:stop], positions[1])
        parts.append(dense(query[:, :, start:stop], key, part, scale=scale, positions=here))
    return RowStatistics(
        entropy=torch.cat([p.entropy for p in parts], -1),
        logit_variance=torch.cat([p.logit_variance for p in parts], -1),
        attention_distance=(
            None
            if positions is None
            else torch.cat([p.attention_distance for p in parts if p.attention_distance is not None], -1)
        ),
        counted=torch.cat([p.counted for p in parts], -1),
    )


def _cpu_kernel(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    return out, log_sum


def _cuda_kernel(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, compute_log_sumexp=True, scale=scale
    )
    return out, log_sum[..., : query.shape[2]]  # the kernel pads the rows to a multiple of 32


_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "cpu": _cpu_kernel,
    "cuda": _cuda_kernel,
}
"""By device type: fused attention that returns its output and the log-sum-exp of every row, in float32."""
