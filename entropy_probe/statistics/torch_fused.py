"""Row statistics from torch's fused attention call, for CUDA devices on which Triton does not work.

The entropy H_i = logsumexp_j(s_ij) - sum_j A_ij s_ij needs the attention-weighted mean logit. This mean is an attention
with the keys as values: sum_j A_ij s_ij = scale * <q_i, sum_j A_ij k_j>. One fused call therefore returns both terms.
A bias of the keys is one more coordinate (1/scale in the query, the bias in the key). The positions of the keys are
more columns of the values.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from entropy_probe.statistics.masks import MASKED_LOGIT, key_bias
from entropy_probe.statistics.moments import attention_distance, logit_variance, mean_and_rest, position_features
from entropy_probe.statistics.rows import RowStatistics


def fused(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> tuple[RowStatistics, float]:
    """Return the statistics, and the largest log-sum-exp of the centred logits: it bounds the rounding error.

    Args:
        query: queries, in float32 or float64.
        key: keys, in the same dtype.
        mask: the same for every query.
        scale: softmax scale.
        positions: token centres of the queries and of the keys.
    """
    if mask is None:
        return _unmasked(query, key, scale, positions)
    allowed, bias = key_bias(mask, key)
    count = allowed.sum(-1, keepdim=True, dtype=query.dtype).clamp_min(1)
    weight = (allowed / count).unsqueeze(-1)
    value = torch.cat([key, bias.unsqueeze(-1)], -1)
    mean_key = (weight * value).sum(-2, keepdim=True)
    value = value - mean_key
    rest = (weight * value).sum(-2, keepdim=True)  # of a rounded mean; see `mean_and_rest`
    mean_key, value = mean_key + rest, value - rest
    query = torch.cat([query, torch.full_like(query[..., :1], 1 / scale)], -1)
    masked = torch.cat([value[..., :-1], value[..., -1:].masked_fill(~allowed.unsqueeze(-1), MASKED_LOGIT)], -1)
    variance = logit_variance(query, (weight * value).mT @ value, scale)
    entropy, distance, log_sum = _attend(query, masked, value, scale, positions)
    counted = allowed.any(-1, keepdim=True).expand_as(entropy)
    logit_mean = scale * torch.linalg.vecdot(query, mean_key)
    statistics = RowStatistics(
        entropy=entropy.clamp_min(0).minimum(count.log()).masked_fill(~counted, 0.0),
        logit_variance=variance.masked_fill(~counted, 0.0),
        log_sum=(log_sum + logit_mean).masked_fill(~counted, -math.inf),
        logit_mean=logit_mean.masked_fill(~counted, 0.0),
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
    """Do the same as `fused` with fewer operations: most calls have no mask."""
    keys = key.shape[-2]
    mean_key, key = mean_and_rest(key)
    entropy, distance, log_sum = _attend(query, key, key, scale, positions)
    logit_mean = scale * torch.linalg.vecdot(query, mean_key)
    statistics = RowStatistics(
        entropy=entropy.clamp_(0, math.log(keys)),
        logit_variance=logit_variance(query, key.mT @ key / keys, scale),
        log_sum=log_sum + logit_mean,
        logit_mean=logit_mean,
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
    """Return entropy, attention distance and log-sum-exp of every row. `value` is the key without the mask."""
    width = query.shape[-1]
    features = 0 if positions is None else 3
    columns = features + -(width + features) % 4  # the kernel needs a multiple of four
    if columns:
        extra = query.new_zeros(key.shape[-2], columns)
        if positions is not None:
            extra[:, :3] = position_features(positions[1].to(query.dtype))
        # The padded query is zero in these columns, so the keys may contain the position features as well.
        extended = torch.cat([value, extra.expand(*value.shape[:-1], columns)], -1)
        key = extended if key is value else F.pad(key, (0, columns))
        value = extended
    out, log_sum = _attention_with_log_sum(F.pad(query, (0, columns)) if columns else query, key, value, scale)
    entropy = log_sum - scale * torch.linalg.vecdot(query, out[..., :width])
    if positions is None:
        return entropy, None, log_sum
    return entropy, attention_distance(positions[0].to(query.dtype), out[..., width : width + 3]), log_sum


def _attention_with_log_sum(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    if query.device.type == "cpu":
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
        return out, log_sum
    out, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, compute_log_sumexp=True, scale=scale
    )
    return out, log_sum[..., : query.shape[2]]  # the kernel pads the rows to a multiple of 32
