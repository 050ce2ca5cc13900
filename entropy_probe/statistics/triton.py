"""The fused kernel for CUDA: one pass over blocks of keys, no product with the values, no attention map.

Of every row it keeps the running maximum m of the logits s, sum 2^(s-m) and sum (s-m) 2^(s-m), which give the entropy
without a difference of large numbers, and the plain sums that the variance and the distance need. Logits are in bits.
Half-precision inputs go to the tensor cores as they are; every sum is in float32.
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

_KIND = ("DEPTH", "MASK", "CAUSAL", "PLACES")

CONFIGS = [
    triton.Config({"ROWS": rows, "KEYS": keys}, num_warps=warps, num_stages=stages)
    for rows, keys, warps, stages in [
        (64, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 3),
        (64, 128, 4, 3), (64, 32, 4, 2), (32, 32, 4, 2),
    ]
]  # fmt: skip
"""What is tried on a GPU, once for every kind of call; what does not fit into its shared memory is passed over."""


MOST_SHARED = 2**17
"""Bytes that a block of queries and its keys may take: beyond, there is no room, and float32 compiles for minutes."""


def fitting(configs: Sequence[triton.Config], named: dict[str, Any], **kwargs: Any) -> list[triton.Config]:
    """Those of some configurations that are worth compiling for such a head width and dtype; the smallest at least."""
    token = kwargs["DEPTH"] * named["query"].element_size()

    def size(config: triton.Config) -> int:
        return int((config.kwargs["ROWS"] + config.num_stages * config.kwargs["KEYS"]) * token)

    return [config for config in configs if size(config) <= MOST_SHARED] or [min(configs, key=size)]


@triton.autotune(
    CONFIGS[:1] if triton.knobs.runtime.interpret else CONFIGS,
    ["many", *_KIND],
    prune_configs_by={"early_config_prune": fitting},
)
@triton.jit
@no_type_check
def _rows(
    query, key, middle, mask, here, there, entropy, variance, log_sum, logit_mean, distance, counted,
    query_b, query_h, query_n, query_d, key_b, key_h, key_n, key_d, mask_b, mask_h, mask_q, mask_k,
    heads, group, queries, keys, many, scale, barred,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, CENTRED: tl.constexpr,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, PLACES: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    # A program does ROWS rows of one head. `many` only tells the tuner calls apart.
    bit: tl.constexpr = 0.6931471805599453  # nats
    lowest: tl.constexpr = -1e30  # -inf would make NaN of the difference of two
    blocks = (queries + ROWS - 1) // ROWS
    one = (tl.program_id(0) // blocks).to(tl.int64)
    item, head = one // heads, one % heads
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, DEPTH)
    inside = row < queries
    q = tl.load(
        query + item * query_b + head * query_h + row[:, None].to(tl.int64) * query_n + column[None, :] * query_d,
        mask=inside[:, None] & (column < WIDTH)[None, :],
        other=0.0,
    )
    kv = item * (heads // group) + head // group
    centre = tl.load(middle + kv * WIDTH + column, mask=column < WIDTH, other=0.0)
    shift = tl.sum(q.to(tl.float32) * centre[None, :], 1) * scale

    highest = tl.full([ROWS], lowest, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    expected = tl.zeros([ROWS], tl.float32)
    number = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS], tl.float32)
    square = tl.zeros([ROWS], tl.float32)
    x = tl.zeros([ROWS], tl.float32)
    y = tl.zeros([ROWS], tl.float32)
    norm = tl.zeros([ROWS], tl.float32)
    for start in range(0, keys, KEYS):
        at = start + tl.arange(0, KEYS)
        k = tl.load(
            key + item * key_b + head // group * key_h + at[None, :].to(tl.int64) * key_n + column[:, None] * key_d,
            mask=(at < keys)[None, :] & (column < WIDTH)[:, None],
            other=0.0,
        )
        s = tl.dot(q, k, input_precision="ieee") * scale
        if not CENTRED:
            s -= shift[:, None]
        s /= bit
        allowed = inside[:, None] & (at < keys)[None, :]
        if CAUSAL:
            allowed = allowed & (at[None, :] <= row[:, None])
        if MASK != 0:
            own_mask = mask + item * mask_b + head * mask_h
            given = tl.load(
                own_mask + row[:, None].to(tl.int64) * mask_q + at[None, :].to(tl.int64) * mask_k,
                mask=allowed,
                other=0,
            )
            if MASK == 1:
                allowed = allowed & (given != 0)
            else:
                allowed = allowed & (given.to(tl.float32) > barred)
                s += tl.where(allowed, given.to(tl.float32), 0.0) / bit
        s = tl.where(allowed, s, 0.0)
        # Chan's way of joining two variances: with a mask the mean may be far from 0, where sums of squares cancel.
        more = tl.sum(allowed.to(tl.float32), 1)
        both = tl.maximum(number + more, 1.0)
        own = tl.sum(s, 1) / tl.maximum(more, 1.0)
        off = tl.where(allowed, s - own[:, None], 0.0)
        square += tl.sum(off * off, 1) + (own - mean) * (own - mean) * number * (more / both)
        mean += (own - mean) * (more / both)
        number += more
        new = tl.maximum(highest, tl.max(tl.where(allowed, s, lowest), 1))
        fade = tl.exp2(highest - new)
        below = tl.where(allowed, s - new[:, None], 0.0)
        p = tl.where(allowed, tl.exp2(below), 0.0)
        expected = fade * (expected + (highest - new) * total) + tl.sum(p * below, 1)
        total = fade * total + tl.sum(p, 1)
        if PLACES:
            key_x = tl.load(there + 2 * at, mask=at < keys, other=0.0)
            key_y = tl.load(there + 2 * at + 1, mask=at < keys, other=0.0)
            x = fade * x + tl.sum(p * key_x[None, :], 1)
            y = fade * y + tl.sum(p * key_y[None, :], 1)
            norm = fade * norm + tl.sum(p * (key_x * key_x + key_y * key_y)[None, :], 1)
        highest = new

    some = number > 0
    whole = tl.where(some, total, 1.0)
    count = tl.where(some, number, 1.0)
    out = one * queries + row
    excess = tl.log2(whole)
    h = tl.minimum(tl.maximum((excess - expected / whole) * bit, 0.0), tl.log(count))
    spread = square / count * (bit * bit)
    tl.store(entropy + out, tl.where(some, h, 0.0), mask=inside)
    tl.store(variance + out, tl.where(some, spread, 0.0), mask=inside)
    tl.store(log_sum + out, tl.where(some, (highest + excess) * bit + shift, float("-inf")), mask=inside)
    tl.store(logit_mean + out, tl.where(some, mean * bit + shift, 0.0), mask=inside)
    tl.store(counted + out, some.to(tl.int8), mask=inside)
    if PLACES:
        row_x = tl.load(here + 2 * row, mask=inside, other=0.0)
        row_y = tl.load(here + 2 * row + 1, mask=inside, other=0.0)
        apart = row_x * row_x + row_y * row_y + (norm - 2 * (row_x * x + row_y * y)) / whole
        tl.store(distance + out, tl.where(some, tl.sqrt(tl.maximum(apart, 0.0)), 0.0), mask=inside)


def by_triton(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    is_causal: bool,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> RowStatistics:
    """Statistics of every row, in float32; arguments as those of `flash`, with fewer heads of keys or as many."""
    dtype = torch.promote_types(query.dtype, key.dtype)
    query, key = query.to(dtype), key.to(dtype)
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    numbers = torch.empty(5, batch, heads, queries, dtype=torch.float32, device=query.device)
    counted = torch.empty(batch, heads, queries, dtype=torch.int8, device=query.device)
    kind = NO_MASK if mask is None else BOOLEAN if mask.dtype == torch.bool else ADDITIVE
    given = counted if mask is None else mask.expand(batch, heads, queries, keys)  # a pointer must be given at any rate
    strides = (0, 0, 0, 0) if mask is None else given.stride()
    if kind == BOOLEAN:
        given = given.view(torch.int8)
    places = (numbers, numbers) if positions is None else tuple(p.float().contiguous() for p in positions)
    middle = key.mean(2, dtype=torch.float32)
    centred = dtype == torch.float32  # in half precision the difference would be rounded
    if centred:
        key = key - middle.unsqueeze(2)

    def grid(config: dict[str, int]) -> tuple[int]:
        return (batch * heads * triton.cdiv(queries, config["ROWS"]),)

    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():  # Triton launches on the current one
        _rows[grid](
            query, key, middle, given, *places, *numbers, counted,
            *query.stride(), *key.stride(), *strides,
            heads, heads // kv_heads, queries, keys, int(keys > 512), scale, MASKED_BIAS,
            WIDTH=width, DEPTH=max(16, triton.next_power_of_2(width)), CENTRED=centred,
            MASK=kind, CAUSAL=is_causal, PLACES=positions is not None,
        )  # fmt: skip
    entropy, variance, log_sum, logit_mean, distance = numbers
    return RowStatistics(
        entropy, variance, log_sum, logit_mean, None if positions is None else distance, counted.bool()
    )
