"""Exact statistics of every attention row in O(N) memory: no attention map is ever built.

With s_ij = scale * <q_i, k_j> and A = softmax(s),

    H_i = logsumexp_j(s_ij) - sum_j A_ij s_ij

Kernels of our own, on a CPU (`cpu`) and on CUDA (`triton`), take the sums of 2^s and s 2^s as they make the logits: one
matrix product, no map. On CUDA where Triton cannot be used, the second term is itself an attention with the keys as
values, scale * <q_i, sum_j A_ij k_j>, so one fused attention call gives both. A bias m_j on the keys rides along as one
more coordinate (1/scale on the query, m_j on the key), and the positions of the keys as more values. Elsewhere, in
float64, and on a CPU for masks that differ between queries, blocks of rows small enough to stay in cache are written
out.
Centring the keys shifts every logit of a row alike, which changes no statistic, and makes their mean 0, so that small
logits need no row maximum; keys in half precision stay as they are on CUDA, for the tensor cores, and their logits are
centred instead.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entropy_probe.statistics import cpu
from entropy_probe.statistics.rows import BARRED, MASKED, RowStatistics, default_scale, precise_dtype

LARGE_LOGIT = 40.0
"""Where the log-sum-exp of centred logits exceeds this many nats, the rounding of float32 logits moves H by 1e-5."""

LARGE_HALF_LOGIT = 1_000.0
"""The same for inputs in half precision, whose own rounding moves H by 1e-3."""

LARGE_DIFFERENCE = 16.0
"""The same for the fused call, whose entropy is a difference of two numbers of this size."""

BLOCK_LOGITS = 2**20
"""Logits held at once where no fused kernel serves: 4 MiB in float32, so that a block and its weights stay in cache."""

_WITHOUT_TRITON: set[torch.device] = set()
"""Devices on which the kernel could not be made: trying again at every call would cost seconds each time."""

BIT = math.log(2)
"""Nats in a bit. Blocks hold their logits in bits: torch's exp2 takes a third of the time of its exp on a CPU."""


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

    Arguments and meaning are those of `dense`; half precision is computed in float32, and what float32 cannot hold to
    1e-5 nats in float64.

    Raises:
        ValueError: for a mask together with `is_causal`.
    """
    scale = default_scale(query) if scale is None else scale
    if is_causal and mask is not None:
        raise ValueError("give a mask or is_causal, not both: scaled_dot_product_attention takes one of them")
    dtype = torch.promote_types(query.dtype, torch.float32)
    on_cuda = _on_cuda(query)
    if on_cuda and dtype == torch.float32 and query.numel() and key.numel() and query.device not in _WITHOUT_TRITON:
        try:
            from entropy_probe.statistics.triton import by_triton

            result = by_triton(query, key, mask, is_causal, scale, positions)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton's own are many: no C compiler, a driver or GPU too old, no room
            _give_up_triton(query.device, error)
        else:
            if _is_exact(result, torch.promote_types(query.dtype, key.dtype)):
                return result
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    precise = precise_dtype(query.device)
    shared = not is_causal and _same_for_all_queries(mask)
    if _by_compiled(query, key, mask, is_causal):
        query, key = query.to(dtype), key.to(dtype)
        bias = None if mask is None else _key_bias(mask, key)
        result, exact = cpu.by_kernel(query, key, bias, scale, positions, LARGE_LOGIT)
    elif not on_cuda:
        result, largest = _by_blocks(query.to(dtype), key.to(dtype), mask, is_causal, scale, positions)
        exact = dtype == precise or largest <= LARGE_LOGIT
    elif shared and query.device in _WITHOUT_TRITON:
        result, largest = _fused(query.to(dtype), key.to(dtype), mask, scale, positions)
        exact = dtype == precise or largest <= LARGE_DIFFERENCE
    else:
        exact = False  # float32 products may be rounded to TF32 there
    if exact:
        return result
    return _by_blocks(query.to(precise), key.to(precise), mask, is_causal, scale, positions)[0]


def curve(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    scale_factors: Sequence[float],
    mask: Shaped[Tensor, "*#mask"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> list[RowStatistics]:
    """What `flash` gives with the scale multiplied by each of some numbers, without positions.

    The compiled kernel makes the logits once for all of them: each but the first costs an exponential a logit, and no
    matrix product.
    """
    scale = default_scale(query) if scale is None else scale
    found: list[tuple[RowStatistics | None, bool]] = [(None, False)] * len(scale_factors)
    if _by_compiled(query, key, mask, is_causal):
        whole = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1) if enable_gqa else key
        own, whole = query.to(torch.float32), whole.to(torch.float32)
        bias = None if mask is None else _key_bias(mask, whole)
        found = [
            one
            for start in range(0, len(scale_factors), cpu.CURVE)
            for one in cpu.curve_by_kernel(
                own, whole, bias, scale, tuple(scale_factors[start : start + cpu.CURVE]), None, LARGE_LOGIT
            )
        ]
    return [
        statistics if statistics and exact else flash(query, key, mask, is_causal, scale * g, enable_gqa)
        for g, (statistics, exact) in zip(scale_factors, found, strict=True)
    ]


def _by_compiled(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    is_causal: bool,
) -> bool:
    """Whether the compiled kernel can take a call."""
    here = cpu.COMPILED and query.device.type == "cpu" and query.dtype != torch.float64
    return bool(here and not is_causal and _same_for_all_queries(mask) and query.numel() and key.numel())


def _on_cuda(query: Tensor) -> bool:
    return query.device.type == "cuda"


def _give_up_triton(device: torch.device, error: Exception) -> None:
    _WITHOUT_TRITON.add(device)
    warnings.warn(
        f"Triton cannot make the fused kernel on {device} ({type(error).__name__}: {error}): the entropy is taken from "
        "torch's own attention, exact too, at twice the cost. Triton needs a C compiler and a GPU of compute "
        "capability 8.0",
        stacklevel=3,
    )


def _is_exact(statistics: RowStatistics, dtype: torch.dtype) -> bool:
    """Whether the logits of the Triton kernel were small enough for their rounding to leave H; not where NaN is."""
    if dtype == torch.float32:  # its keys are centred
        sizes, limit = statistics.log_sum - statistics.logit_mean, LARGE_LOGIT
    else:
        sizes, limit = torch.maximum(statistics.log_sum.abs(), statistics.logit_mean.abs()), LARGE_HALF_LOGIT
    return bool(sizes.masked_fill(~statistics.counted, 0.0).max() <= limit)


def _fused(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> tuple[RowStatistics, float]:
    """The statistics, and the largest log-sum-exp of a row: a measure of the digits that rounding has taken."""
    if mask is None:
        return _unmasked(query, key, scale, positions)
    allowed, bias = _key_bias(mask, key)
    count = allowed.sum(-1, keepdim=True).clamp_min(1)
    weight = (allowed.to(query.dtype) / count).unsqueeze(-1)
    value = torch.cat([key, bias.unsqueeze(-1)], -1)
    middle = (weight * value).sum(-2, keepdim=True)
    value = value - middle
    query = torch.cat([query, torch.full_like(query[..., :1], 1 / scale)], -1)
    barred = torch.cat([value[..., :-1], value[..., -1:].masked_fill(~allowed.unsqueeze(-1), MASKED)], -1)
    variance = _logit_variance(query, (weight * value).mT @ value, scale)
    entropy, distance, log_sum = _attend(query, barred, value, scale, positions)
    counted = allowed.any(-1, keepdim=True).expand_as(entropy)
    logit_mean = scale * torch.linalg.vecdot(query, middle)
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
    """As `_fused`, for the common case, in as few operations as it takes."""
    keys = key.shape[-2]
    middle = key.mean(-2, keepdim=True)
    key = key - middle
    entropy, distance, log_sum = _attend(query, key, key, scale, positions)
    logit_mean = scale * torch.linalg.vecdot(query, middle)
    statistics = RowStatistics(
        entropy=entropy.clamp_(0, math.log(keys)),
        logit_variance=_logit_variance(query, key.mT @ key / keys, scale),
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
    """Entropy, attention distance and log-sum-exp of every row, from one fused call; `value` is the key, unbarred."""
    width = query.shape[-1]
    places = 0 if positions is None else 3
    seen, columns = query, places + -(width + places) % 4
    if columns:
        extra = query.new_zeros(key.shape[-2], columns)
        if positions is not None:
            extra[:, :3] = _places(positions[1].to(query.dtype))
        # The query is zero in the columns where the places stand, so the keys may carry them too.
        extended = torch.cat([value, extra.expand(*value.shape[:-1], columns)], -1)
        key = extended if key is value else F.pad(key, (0, columns))
        value, seen = extended, F.pad(query, (0, columns))
    out, log_sum = _kernel(seen, key, value, scale)
    entropy = log_sum - scale * torch.linalg.vecdot(query, out[..., :width])
    if positions is None:
        return entropy, None, log_sum
    return entropy, _distance(positions[0].to(query.dtype), out[..., width : width + 3]), log_sum


def _logit_variance(
    query: Float[Tensor, "*maps queries width"],
    covariance: Float[Tensor, "*maps width width"],
    scale: float,
) -> Float[Tensor, "*maps queries"]:
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
    allowed = row > BARRED
    return allowed, row.masked_fill(~allowed, 0.0)


def _same_for_all_queries(mask: Shaped[Tensor, "*#mask"] | None) -> bool:
    return mask is None or mask.ndim < 2 or mask.shape[-2] == 1


@torch.no_grad()
def _by_blocks(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    is_causal: bool,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> tuple[RowStatistics, float]:
    """As `_fused`, by blocks of at most `BLOCK_LOGITS` logits (one row's, if it has more)."""
    batch, heads, queries, width = query.shape
    maps, keys = batch * heads, key.shape[2]
    plain = mask is None and not is_causal
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
    rows = max(1, min(queries, BLOCK_LOGITS // keys))
    together = max(1, BLOCK_LOGITS // (rows * keys)) if rows == queries else 1

    query = query.reshape(maps, queries, width)
    middle = key.mean(-2, keepdim=True)
    logit_mean = torch.linalg.vecdot(query, middle.reshape(maps, 1, width)).mul_(scale)
    key = (key - middle).mul_(scale / BIT).reshape(maps, keys, width)
    # Without a mask the logits have mean 0, so their exponentials cannot all vanish, and where they overflow `log_sum`
    # says so: the caller repeats the call in float64, where the row maximum is taken off.
    shifted = not plain or query.dtype == precise_dtype(query.device)
    buffers = query.new_empty(2, together * rows * keys)
    highest, expected = query.new_zeros(2, maps, queries)
    variance, excess_mean = torch.empty_like(expected), torch.zeros_like(expected)
    if plain:  # the form cancels where a large query sees little of the keys' spread
        precise = precise_dtype(query.device)
        variance = _logit_variance(query.to(precise), key.mT.to(precise) @ key.to(precise) / keys, BIT).to(query.dtype)
    number = torch.full_like(expected, keys)
    ones = query.new_ones(keys, 1)
    columns = ones if positions is None else torch.cat([ones, _places(positions[1].to(query.dtype))], -1)
    sums, columns = query.new_empty(maps, queries, columns.shape[1]), columns.mT.contiguous()

    for first, start in itertools.product(range(0, maps, together), range(0, queries, rows)):
        block = slice(first, first + together), slice(start, start + rows)
        part = query[block]
        shape = (*part.shape[:2], keys)
        logits, weights = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
        logits = _product(part, key[block[0]], logits)
        barred = None
        if not plain:
            if mask is None:
                allowed = _causal(start, shape[1], keys, query.device)
            else:
                at = torch.arange(first, first + shape[0], device=query.device)
                allowed = mask[at // heads, at % heads, block[1]]
            barred, excess_mean[block], variance[block], number[block] = _bar(logits, allowed)
        if shifted:
            peak = logits.amax(-1, keepdim=True).clamp_min(MASKED)
            highest[block] = peak.squeeze(-1)
            logits -= peak
        torch.exp2(logits, out=weights)
        sums[block] = F.linear(weights, columns) if positions is not None else weights.sum(-1, keepdim=True)
        if barred is not None:
            logits.masked_fill_(barred, 0.0)
        expected[block] = weights.mul_(logits).sum(-1)

    total = sums[..., 0]
    excess = total.log2()
    entropy, log_sum = (excess - expected / total).mul_(BIT), (excess + highest).mul_(BIT)
    distance = None
    if positions is not None:
        distance = _distance(positions[0].to(query.dtype), sums[..., 1:] / total[..., None])
    if plain:
        entropy.clamp_(0, math.log(keys))
        counted = torch.ones((), dtype=torch.bool, device=key.device).expand_as(entropy)
    else:
        variance *= BIT**2
        counted = number > 0
        entropy = entropy.clamp_min_(0).minimum(number.log()).masked_fill_(~counted, 0.0)
        log_sum.masked_fill_(~counted, 0.0)
        distance = None if distance is None else distance.masked_fill_(~counted, 0.0)
    true_log_sum = (log_sum + logit_mean).masked_fill_(~counted, -math.inf)
    logit_mean = (excess_mean * BIT + logit_mean).masked_fill_(~counted, 0.0)
    statistics = RowStatistics(
        entropy=entropy.view(batch, heads, queries),
        logit_variance=variance.view(batch, heads, queries),
        log_sum=true_log_sum.view(batch, heads, queries),
        logit_mean=logit_mean.view(batch, heads, queries),
        attention_distance=None if distance is None else distance.view(batch, heads, queries),
        counted=counted.view(batch, heads, queries),
    )
    return statistics, log_sum.abs().max().item() if queries else 0.0


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether torch carries oneDNN's matrix product, which for float32 can be twice as fast as its BLAS."""


def _product(
    query: Float[Tensor, "maps rows width"],
    key: Float[Tensor, "maps keys width"],
    out: Float[Tensor, "maps rows keys"],
) -> Float[Tensor, "maps rows keys"]:
    """query @ key^T, into `out` where that is not slower."""
    if len(query) == 1 and query.numel() and _ONEDNN and query.dtype == torch.float32 and query.device.type == "cpu":
        product: Tensor = torch.ops.mkldnn._linear_pointwise(query[0], key[0], None, "none", [], "")
        return product[None]
    return torch.bmm(query, key.mT, out=out)


def _causal(start: int, rows: int, keys: int, device: torch.device) -> Bool[Tensor, "rows keys"]:
    """Row i, counted from `start`, may attend to the keys j <= i."""
    return torch.arange(keys, device=device) <= torch.arange(start, start + rows, device=device)[:, None]


def _bar(
    logits: Float[Tensor, "maps rows keys"], mask: Shaped[Tensor, "*#mask"]
) -> tuple[
    Bool[Tensor, "maps rows keys"], Float[Tensor, "maps rows"], Float[Tensor, "maps rows"], Float[Tensor, "maps rows"]
]:
    """Lay a mask on logits, in place; returns the barred keys, the mean and variance over the others, their number."""
    if mask.dtype == torch.bool:
        barred = (~mask).expand_as(logits)
    else:
        bias = mask.to(logits.dtype)
        barred = (bias <= BARRED).expand_as(logits)
        logits += bias / BIT
    logits.masked_fill_(barred, 0.0)
    number = (~barred).sum(-1).to(logits.dtype)
    mean = logits.sum(-1) / number.clamp_min(1)
    variance = (logits - mean[..., None]).masked_fill_(barred, 0.0).square_().sum(-1) / number.clamp_min(1)
    logits.masked_fill_(barred, -math.inf)
    return barred, mean, variance, number


def _places(positions: Float[Tensor, "tokens 2"]) -> Float[Tensor, "tokens 3"]:
    """x, y and x^2 + y^2: their means under the attention give the mean squared distance."""
    return torch.cat([positions, positions.square().sum(-1, keepdim=True)], -1)


def _distance(
    here: Float[Tensor, "queries 2"], means: Float[Tensor, "*maps queries 3"]
) -> Float[Tensor, "*maps queries"]:
    """Root mean square distance from a query to what it attends to, by the means of `_places` over the keys."""
    form = torch.cat([-2 * here, torch.ones_like(here[:, :1])], -1)
    squared: Tensor = torch.linalg.vecdot(means, form) + here.square().sum(-1)
    return squared.clamp_min(0).sqrt()


def _kernel(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Fused attention that returns its output and the log-sum-exp of every row, in float32."""
    if query.device.type == "cpu":
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
        return out, log_sum
    out, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, compute_log_sumexp=True, scale=scale
    )
    return out, log_sum[..., : query.shape[2]]  # the kernel pads the rows to a multiple of 32
