"""Row statistics in plain torch, block by block: for float64, for any mask, and for every device.

Each block of logits is small enough to stay in the CPU cache. Logits are in bits, because torch's exp2 takes a third of
the time of its exp on a CPU.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entropy_probe.statistics.masks import MASKED_BIAS, MASKED_LOGIT
from entropy_probe.statistics.moments import (
    attention_distance,
    logit_variance,
    mean_and_rest,
    position_features,
)
from entropy_probe.statistics.rows import RowStatistics, precise_dtype

BLOCK_LOGITS = 2**20
"""Maximum number of logits in a block (one row, if it has more): 4 MiB in float32."""

BIT = math.log(2)
"""Nats per bit."""

_Block = tuple[slice, slice]
"""Attention maps (batch x heads), and rows."""


@dataclass(frozen=True)
class _Sums:
    """Sums over the keys of each row, filled block by block.

    Attributes:
        weights: sum of 2^(s - row_maximum), and of this times each position feature.
        expected: sum of (s - row_maximum) 2^(s - row_maximum).
        row_maximum: maximum logit s, bits; 0 if it was not subtracted.
        logit_mean: mean of the allowed logits, bits.
        variance: variance of the logits, bits^2 with a mask and nats^2 without.
        allowed_keys: number of allowed keys.
    """

    weights: Float[Tensor, "maps queries columns"]
    expected: Float[Tensor, "maps queries"]
    row_maximum: Float[Tensor, "maps queries"]
    logit_mean: Float[Tensor, "maps queries"]
    variance: Float[Tensor, "maps queries"]
    allowed_keys: Float[Tensor, "maps queries"]


@torch.no_grad()
def by_blocks(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    is_causal: bool,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> tuple[RowStatistics, float]:
    """Return the statistics, and the largest log-sum-exp of the centred logits: it bounds the rounding error.

    Args:
        query: queries, in float32 or float64.
        key: keys, in the same dtype.
        mask: any mask that `scaled_dot_product_attention` accepts.
        is_causal: query i attends to keys j <= i only.
        scale: softmax scale.
        positions: token centres of the queries and of the keys.
    """
    batch, heads, queries, width = query.shape
    maps, keys = batch * heads, key.shape[2]
    masked = mask is not None or is_causal
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
    query = query.reshape(maps, queries, width)
    precise = query.dtype == precise_dtype(query.device)
    # In float64, a key may be 1e20 times larger than the others: their mean would hide them.
    centre, key = _median_and_rest(key) if precise else mean_and_rest(key)
    centre_logit = torch.linalg.vecdot(query, centre.reshape(maps, 1, width)).mul_(scale)
    key = key.mul_(scale / BIT).reshape(maps, keys, width)
    # Without a mask the centred logits have mean 0, so their exponentials cannot all vanish. If they overflow,
    # `log_sum` is infinite, and the caller repeats the call in float64, where the row maximum is subtracted.
    subtract_maximum = masked or precise
    features = query.new_ones(keys, 1)
    if positions is not None:
        features = torch.cat([features, position_features(positions[1].to(query.dtype))], -1)
    sums = _empty_sums(query, key, features.shape[1], masked)
    features = features.mT.contiguous()
    blocks = _blocks(maps, queries, keys)
    buffers = query.new_empty(2, max((_rows(block) * keys for block in blocks), default=0))
    for block in blocks:
        allowed = _block_mask(mask, block, heads, queries, keys, query.device) if masked else None
        _add_block(sums, block, query, key, allowed, features, buffers, subtract_maximum)
    return _statistics(sums, centre_logit, keys, masked, positions, (batch, heads, queries))


def _median_and_rest(key: Float[Tensor, "*maps keys width"]) -> tuple[Tensor, Tensor]:
    """Return the median of the keys by feature, and the keys minus it."""
    middle = key.shape[-2] // 2
    median = key.sort(-2).values[..., middle : middle + 1, :]  # `median` is not deterministic on CUDA
    return median, key - median


def _blocks(maps: int, queries: int, keys: int) -> list[_Block]:
    rows = max(1, min(queries, BLOCK_LOGITS // keys))
    together = max(1, BLOCK_LOGITS // (rows * keys)) if rows == queries else 1
    starts = itertools.product(range(0, maps, together), range(0, queries, rows))
    return [(slice(first, first + together), slice(start, start + rows)) for first, start in starts]


def _rows(block: _Block) -> int:
    maps, rows = block
    return int((maps.stop - maps.start) * (rows.stop - rows.start))


def _empty_sums(
    query: Float[Tensor, "maps queries width"], key: Float[Tensor, "maps keys width"], columns: int, masked: bool
) -> _Sums:
    maps, queries, _ = query.shape
    row_maximum, expected = query.new_zeros(2, maps, queries)
    if masked:
        variance, mean = torch.empty_like(expected), torch.empty_like(expected)
    else:  # in float64: the quadratic form loses digits if the query is large and the keys vary little along it
        precise = precise_dtype(query.device)
        mean_key, centred = mean_and_rest(key.to(precise))
        mean = torch.linalg.vecdot(query, mean_key.to(query.dtype))
        covariance = centred.mT @ centred / key.shape[1]
        variance = logit_variance(query.to(precise), covariance, BIT).to(query.dtype)
    return _Sums(
        weights=query.new_empty(maps, queries, columns),
        expected=expected,
        row_maximum=row_maximum,
        logit_mean=mean,
        variance=variance,
        allowed_keys=torch.full_like(expected, key.shape[1]),
    )


def _add_block(
    sums: _Sums,
    block: _Block,
    query: Float[Tensor, "maps queries width"],
    key: Float[Tensor, "maps keys width"],
    allowed: Shaped[Tensor, "*#mask"] | None,
    features: Float[Tensor, "columns keys"],
    buffers: Float[Tensor, "2 size"],
    subtract_maximum: bool,
) -> None:
    part = query[block]
    shape = (*part.shape[:2], key.shape[1])
    logits, weights = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
    logits = _product(part, key[block[0]], logits)
    masked_keys = None
    if allowed is not None:
        masked_keys, sums.logit_mean[block], sums.variance[block], sums.allowed_keys[block] = _apply_mask(
            logits, allowed
        )
    if subtract_maximum:
        maximum = logits.amax(-1, keepdim=True).clamp_min(MASKED_LOGIT)
        sums.row_maximum[block] = maximum.squeeze(-1)
        logits -= maximum
    torch.exp2(logits, out=weights)
    sums.weights[block] = F.linear(weights, features) if len(features) > 1 else weights.sum(-1, keepdim=True)
    if masked_keys is not None:
        logits.masked_fill_(masked_keys, 0.0)
    sums.expected[block] = weights.mul_(logits).sum(-1)


def _statistics(
    sums: _Sums,
    centre_logit: Float[Tensor, "maps queries"],
    keys: int,
    masked: bool,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
    shape: tuple[int, int, int],
) -> tuple[RowStatistics, float]:
    total, variance = sums.weights[..., 0], sums.variance
    log_total = total.log2()
    entropy = (log_total - sums.expected / total).mul_(BIT)
    log_sum = (log_total + sums.row_maximum).mul_(BIT)
    distance = None
    if positions is not None:
        distance = attention_distance(positions[0].to(total.dtype), sums.weights[..., 1:] / total[..., None])
    if masked:
        variance *= BIT**2
        counted = sums.allowed_keys > 0
        entropy = entropy.clamp_min_(0).minimum(sums.allowed_keys.log()).masked_fill_(~counted, 0.0)
        log_sum.masked_fill_(~counted, 0.0)
        distance = None if distance is None else distance.masked_fill_(~counted, 0.0)
    else:
        entropy.clamp_(0, math.log(keys))
        counted = torch.ones((), dtype=torch.bool, device=total.device).expand_as(entropy)
    uncentred_log_sum = (log_sum + centre_logit).masked_fill_(~counted, -math.inf)
    logit_mean = (sums.logit_mean * BIT + centre_logit).masked_fill_(~counted, 0.0)
    statistics = RowStatistics(
        entropy=entropy.view(shape),
        logit_variance=variance.view(shape),
        log_sum=uncentred_log_sum.view(shape),
        logit_mean=logit_mean.view(shape),
        attention_distance=None if distance is None else distance.view(shape),
        counted=counted.view(shape),
    )
    return statistics, log_sum.abs().max().item() if shape[-1] else 0.0


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""True if torch includes oneDNN's matrix product. In float32 it can be twice as fast as torch's BLAS."""


def _product(
    query: Float[Tensor, "maps rows width"],
    key: Float[Tensor, "maps keys width"],
    out: Float[Tensor, "maps rows keys"],
) -> Float[Tensor, "maps rows keys"]:
    """Return query @ key^T: in `out`, or in a new tensor if that is faster."""
    if len(query) == 1 and query.numel() and _ONEDNN and query.dtype == torch.float32 and query.device.type == "cpu":
        rows, columns = query[0].contiguous(), key[0].contiguous()  # oneDNN is 1,000 times slower on strided keys
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")
        return product[None]
    return torch.bmm(query, key.mT, out=out)


def _block_mask(
    mask: Shaped[Tensor, "batch heads queries keys"] | None,
    block: _Block,
    heads: int,
    queries: int,
    keys: int,
    device: torch.device,
) -> Shaped[Tensor, "*#mask"]:
    """Return the rows of the mask in a block; without a mask, the causal one."""
    if mask is None:
        rows = torch.arange(queries, device=device)[block[1]]
        return torch.arange(keys, device=device) <= rows[:, None]
    maps = torch.arange(mask.shape[0] * heads, device=device)[block[0]]
    return mask[maps // heads, maps % heads, block[1]]


def _apply_mask(
    logits: Float[Tensor, "maps rows keys"], mask: Shaped[Tensor, "*#mask"]
) -> tuple[
    Bool[Tensor, "maps rows keys"], Float[Tensor, "maps rows"], Float[Tensor, "maps rows"], Float[Tensor, "maps rows"]
]:
    """Apply a mask to logits in place. Return the masked keys, and mean, variance and number of the allowed logits."""
    if mask.dtype == torch.bool:
        masked = (~mask).expand_as(logits)
    else:
        bias = mask.to(logits.dtype)
        masked = (bias <= MASKED_BIAS).expand_as(logits)
        logits += bias / BIT
    logits.masked_fill_(masked, 0.0)
    number = (~masked).sum(-1).to(logits.dtype)
    mean = logits.sum(-1) / number.clamp_min(1)
    variance = (logits - mean[..., None]).masked_fill_(masked, 0.0).square_().sum(-1) / number.clamp_min(1)
    logits.masked_fill_(masked, -math.inf)
    return masked, mean, variance, number
