"""The fused kernel for CUDA: one pass over blocks of keys, without a product with the values or an attention map.

For each row it keeps the running maximum m of the logits s, sum 2^(s - m) and sum (s - m) 2^(s - m). These give the
entropy without a difference of large numbers. It also keeps the sums for the variance and the attention distance.
Logits are in bits. Half-precision inputs go to the tensor cores unchanged; every sum is in float32.

Triton inlines the functions that the kernel calls: the machine code is the same as for one long function.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Shaped
from torch import Tensor

from entropy_probe.statistics.masks import MASKED_BIAS
from entropy_probe.statistics.rows import RowStatistics

NO_MASK, BOOLEAN, ADDITIVE = 0, 1, 2
"""Values of the kernel's argument `MASK`."""

BIT = tl.constexpr(0.6931471805599453)
"""Nats per bit."""

LOWEST = tl.constexpr(-1e30)
"""Replaces -inf as the first row maximum: the difference of two infinities is NaN."""

CONFIGS = [
    triton.Config({"ROWS": rows, "KEYS": keys}, num_warps=warps, num_stages=stages)
    for rows, keys, warps, stages in [
        (64, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 3),
        (64, 128, 4, 3), (64, 32, 4, 2), (32, 32, 4, 2),
    ]
]  # fmt: skip
"""Configurations to try on a GPU, once for every kind of call. Those that exceed its shared memory are skipped."""

MAX_SHARED_BYTES = 2**17
"""Maximum size of a block of queries and its keys. Larger blocks do not fit, and compile for minutes in float32."""


MAX_LOGITS_PER_THREAD = {True: 64, False: 32}
"""Logits of a block that one thread holds, for heads of at most 64 features and for wider ones. With more, the
registers overflow, and one configuration compiles for a minute on an A100 instead of ten seconds."""


def fitting(configs: Sequence[triton.Config], named: dict[str, Any], **kwargs: Any) -> list[triton.Config]:
    """Return the configurations that fit into shared memory and registers, for a head width and dtype; at least one."""
    token = kwargs["DEPTH"] * named["query"].element_size()
    most = MAX_LOGITS_PER_THREAD[kwargs["DEPTH"] <= 64]

    def size(config: triton.Config) -> int:
        return int((config.kwargs["ROWS"] + config.num_stages * config.kwargs["KEYS"]) * token)

    def logits(config: triton.Config) -> float:
        return float(config.kwargs["ROWS"] * config.kwargs["KEYS"] / (32 * config.num_warps))

    fits = [config for config in configs if size(config) <= MAX_SHARED_BYTES and logits(config) <= most]
    return fits or [min(configs, key=size)]


@triton.jit
@no_type_check
def _apply_mask(
    s, allowed, row, column, mask, mask_q, mask_k, masked_bias, MASK: tl.constexpr, CAUSAL: tl.constexpr
):  # fmt: skip
    """Return the logits with the mask added, 0 where masked, and the allowed pairs of row and key."""
    if CAUSAL:
        allowed = allowed & (column[None, :] <= row[:, None])
    if MASK != 0:
        value = tl.load(
            mask + row[:, None].to(tl.int64) * mask_q + column[None, :].to(tl.int64) * mask_k, mask=allowed, other=0
        )
        if MASK == 1:
            allowed = allowed & (value != 0)
        else:
            allowed = allowed & (value.to(tl.float32) > masked_bias)
            s += tl.where(allowed, value.to(tl.float32), 0.0) / BIT
    return tl.where(allowed, s, 0.0), allowed


@triton.jit
@no_type_check
def _add_variance(s, allowed, count, mean, square):
    """Add a block of logits to their number, mean and sum of squared deviations, by the method of Chan et al. 1979.

    With a mask the mean may be far from 0. Plain sums of squares would then cancel.
    """
    block_count = tl.sum(allowed.to(tl.float32), 1)
    new_count = tl.maximum(count + block_count, 1.0)
    block_mean = tl.sum(s, 1) / tl.maximum(block_count, 1.0)
    deviation = tl.where(allowed, s - block_mean[:, None], 0.0)
    square += tl.sum(deviation * deviation, 1) + (block_mean - mean) * (block_mean - mean) * count * (
        block_count / new_count
    )
    mean += (block_mean - mean) * (block_count / new_count)
    return count + block_count, mean, square


@triton.jit
@no_type_check
def _add_entropy(s, allowed, maximum, total, expected):
    """Add a block of logits to their maximum m, sum 2^(s - m) and sum (s - m) 2^(s - m).

    Return these, the weights 2^(s - m) of the block, and the factor by which the new maximum shrinks the sums so far.
    """
    new_maximum = tl.maximum(maximum, tl.max(tl.where(allowed, s, LOWEST), 1))
    shrink = tl.exp2(maximum - new_maximum)
    below = tl.where(allowed, s - new_maximum[:, None], 0.0)
    weight = tl.where(allowed, tl.exp2(below), 0.0)
    expected = shrink * (expected + (maximum - new_maximum) * total) + tl.sum(weight * below, 1)
    total = shrink * total + tl.sum(weight, 1)
    return new_maximum, total, expected, weight, shrink


@triton.jit
@no_type_check
def _add_positions(weight, shrink, column, keys, key_positions, x, y, norm):
    """Add a block of weights to the weighted sums of x, y and x^2 + y^2 of the keys."""
    key_x = tl.load(key_positions + 2 * column, mask=column < keys, other=0.0)
    key_y = tl.load(key_positions + 2 * column + 1, mask=column < keys, other=0.0)
    x = shrink * x + tl.sum(weight * key_x[None, :], 1)
    y = shrink * y + tl.sum(weight * key_y[None, :], 1)
    norm = shrink * norm + tl.sum(weight * (key_x * key_x + key_y * key_y)[None, :], 1)
    return x, y, norm


@triton.jit
@no_type_check
def _store_statistics(
    entropy, variance, log_sum, logit_mean, counted, out, inside, shift, count, mean, square, maximum, total, expected
):  # fmt: skip
    """Write the statistics of every row except its attention distance. `shift` is the logit of the mean key."""
    some = count > 0
    total = tl.where(some, total, 1.0)
    keys = tl.where(some, count, 1.0)
    log_total = tl.log2(total)
    h = tl.minimum(tl.maximum((log_total - expected / total) * BIT, 0.0), tl.log(keys))
    spread = square / keys * (BIT * BIT)
    tl.store(entropy + out, tl.where(some, h, 0.0), mask=inside)
    tl.store(variance + out, tl.where(some, spread, 0.0), mask=inside)
    tl.store(log_sum + out, tl.where(some, (maximum + log_total) * BIT + shift, float("-inf")), mask=inside)
    tl.store(logit_mean + out, tl.where(some, mean * BIT + shift, 0.0), mask=inside)
    tl.store(counted + out, some.to(tl.int8), mask=inside)


@triton.jit
@no_type_check
def _store_distance(distance, out, inside, row, query_positions, count, total, x, y, norm):
    """Write the attention distance of every row."""
    some = count > 0
    row_x = tl.load(query_positions + 2 * row, mask=inside, other=0.0)
    row_y = tl.load(query_positions + 2 * row + 1, mask=inside, other=0.0)
    squared = row_x * row_x + row_y * row_y + (norm - 2 * (row_x * x + row_y * y)) / tl.where(some, total, 1.0)
    tl.store(distance + out, tl.where(some, tl.sqrt(tl.maximum(squared, 0.0)), 0.0), mask=inside)


@triton.autotune(
    CONFIGS[:1] if triton.knobs.runtime.interpret else CONFIGS,
    ["many_keys", "DEPTH", "MASK", "CAUSAL", "POSITIONS"],
    prune_configs_by={"early_config_prune": fitting},
)
@triton.jit
@no_type_check
def rows_kernel(
    query, key, mean_key, mask, query_positions, key_positions,
    entropy, variance, log_sum, logit_mean, distance, counted,
    query_b, query_h, query_n, query_d, key_b, key_h, key_n, key_d, mask_b, mask_h, mask_q, mask_k,
    heads, group, queries, keys, many_keys, scale, masked_bias,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, CENTRED: tl.constexpr,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, POSITIONS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Compute the statistics of `ROWS` rows of one head. `many_keys` is only a key of the autotuner."""
    blocks = (queries + ROWS - 1) // ROWS
    map_index = (tl.program_id(0) // blocks).to(tl.int64)
    item, head = map_index // heads, map_index % heads
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, DEPTH)
    inside = row < queries
    own_query = query + item * query_b + head * query_h
    q = tl.load(
        own_query + row[:, None].to(tl.int64) * query_n + feature[None, :] * query_d,
        mask=inside[:, None] & (feature < WIDTH)[None, :],
        other=0.0,
    )
    key_map = item * (heads // group) + head // group
    centre = tl.load(mean_key + key_map * WIDTH + feature, mask=feature < WIDTH, other=0.0)
    shift = tl.sum(q.to(tl.float32) * centre[None, :], 1) * scale

    maximum = tl.full([ROWS], LOWEST, tl.float32)
    zero = tl.zeros([ROWS], tl.float32)
    total, expected, count, mean, square, x, y, norm = zero, zero, zero, zero, zero, zero, zero, zero
    own_key, own_mask = key + item * key_b + head // group * key_h, mask + item * mask_b + head * mask_h
    for start in range(0, keys, KEYS):
        column = start + tl.arange(0, KEYS)
        k = tl.load(
            own_key + column[None, :].to(tl.int64) * key_n + feature[:, None] * key_d,
            mask=(column < keys)[None, :] & (feature < WIDTH)[:, None],
            other=0.0,
        )
        s = tl.dot(q, k, input_precision="ieee") * scale
        if not CENTRED:
            s -= shift[:, None]
        s /= BIT
        allowed = inside[:, None] & (column < keys)[None, :]
        s, allowed = _apply_mask(s, allowed, row, column, own_mask, mask_q, mask_k, masked_bias, MASK, CAUSAL)
        count, mean, square = _add_variance(s, allowed, count, mean, square)
        maximum, total, expected, weight, shrink = _add_entropy(s, allowed, maximum, total, expected)
        if POSITIONS:
            x, y, norm = _add_positions(weight, shrink, column, keys, key_positions, x, y, norm)

    out = map_index * queries + row
    _store_statistics(
        entropy, variance, log_sum, logit_mean, counted,
        out, inside, shift, count, mean, square, maximum, total, expected,
    )  # fmt: skip
    if POSITIONS:
        _store_distance(distance, out, inside, row, query_positions, count, total, x, y, norm)


def by_triton(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    is_causal: bool,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> RowStatistics:
    """Compute the statistics of every row in float32.

    The arguments are those of `flash`; `heads` is a multiple of `kv_heads`.
    """
    dtype = torch.promote_types(query.dtype, key.dtype)
    query, key = query.to(dtype), key.to(dtype)
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    numbers = torch.empty(5, batch, heads, queries, dtype=torch.float32, device=query.device)
    counted = torch.empty(batch, heads, queries, dtype=torch.int8, device=query.device)
    kind = NO_MASK if mask is None else BOOLEAN if mask.dtype == torch.bool else ADDITIVE
    given = counted if mask is None else mask.expand(batch, heads, queries, keys)  # Triton needs some pointer
    strides = (0, 0, 0, 0) if mask is None else given.stride()
    if kind == BOOLEAN:
        given = given.view(torch.int8)
    centres = (numbers, numbers) if positions is None else tuple(p.float().contiguous() for p in positions)
    mean_key = key.mean(2, dtype=torch.float32)
    centred = dtype == torch.float32  # in half precision the difference would be rounded
    if centred:
        key = key - mean_key.unsqueeze(2)

    def grid(config: dict[str, int]) -> tuple[int]:
        return (batch * heads * triton.cdiv(queries, config["ROWS"]),)

    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():  # Triton launches on the current device
        rows_kernel[grid](
            query, key, mean_key, given, *centres, *numbers, counted,
            *query.stride(), *key.stride(), *strides,
            heads, heads // kv_heads, queries, keys, int(keys > 512), scale, MASKED_BIAS,
            WIDTH=width, DEPTH=max(16, triton.next_power_of_2(width)), CENTRED=centred,
            MASK=kind, CAUSAL=is_causal, POSITIONS=positions is not None,
        )  # fmt: skip
    entropy, variance, log_sum, logit_mean, distance = numbers
    return RowStatistics(
        entropy, variance, log_sum, logit_mean, None if positions is None else distance, counted.bool()
    )
