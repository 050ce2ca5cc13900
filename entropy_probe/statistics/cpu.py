"""The fused kernel for CPUs, `cpu.c`: one pass over the keys, no attention map, no intermediate tensor.

It is compiled when the package is installed, where there is a C compiler; `flash` does without it elsewhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.statistics.rows import RowMeans, RowStatistics

try:
    from entropy_probe.statistics import _cpu
except ImportError:
    COMPILED = False
else:
    COMPILED = True


def by_kernel(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    bias: tuple[Bool[Tensor, "batch heads keys"], Float[Tensor, "batch heads keys"]] | None,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
    limit: float,
) -> tuple[RowStatistics, bool]:
    """Statistics of every row of a float32 call on the CPU that is not empty, and whether they are exact.

    Args:
        query: in float32.
        key: in float32.
        bias: which keys may be attended, and what is added to their logits, nats.
        scale: factor of the logits.
        positions: places of the queries and of the keys, for the attention distance.
        limit: the log-sum-exp of the centred logits, nats, up to which float32 holds them exactly enough.

    Raises:
        ValueError: for a key or positions that do not fit the query.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    if key.shape != (batch, heads, keys, width):  # the kernel gets addresses, and would read what is not there
        raise ValueError(f"a key of shape {tuple(key.shape)} does not fit a query of shape {tuple(query.shape)}")
    if positions is not None and [len(p) for p in positions] != [queries, keys]:
        raise ValueError(f"give places for {queries} queries and {keys} keys, not {[len(p) for p in positions]}")
    padded = keys + -keys % _cpu.TILE
    query, key = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key))
    entropy, variance = query.new_empty(2, batch, heads, queries)
    means = query.new_empty(4, batch, heads)
    scratch = query.new_empty(5 * padded + batch * heads * (padded * width + 1))
    counted = torch.ones((), dtype=torch.bool).expand_as(entropy)
    distance: Tensor | None = None
    barring: tuple[Tensor | None, ...] = (None, None)
    places: tuple[Tensor | None, ...] = (None, None)
    if bias is not None:
        barring = _barring(*bias, padded)
        counted = bias[0].any(-1, keepdim=True).expand_as(entropy)
    if positions is not None:
        places = tuple(p.to(torch.float32).contiguous() for p in positions)
        distance = torch.empty_like(entropy)
    tensors = (query, key, *barring, *places, scratch, entropy, variance, distance, means)
    exact = _cpu.statistics(
        tuple(0 if t is None else t.data_ptr() for t in tensors),
        (batch, heads, queries, keys, width),
        query.stride()[:3],
        key.stride()[:3],
        scale,
        limit,
        torch.get_num_threads(),
    )
    reduced = RowMeans(means[0], means[1], means[2], None if distance is None else means[3])
    return RowStatistics(entropy, variance, distance, counted, reduced), exact


def _barring(
    allowed: Bool[Tensor, "batch heads keys"], added: Float[Tensor, "batch heads keys"], padded: int
) -> tuple[Float[Tensor, "batch heads padded"], Float[Tensor, "batch heads padded"]]:
    """What is added to the logits of each key, in bits with mean 0 over the allowed ones, and 1 for those, else 0."""
    mean = added.sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True).clamp_min(1)
    bits = ((added - mean) / math.log(2)).masked_fill(~allowed, _cpu.BARRED)
    rest = (0, padded - allowed.shape[-1])
    weight = F.pad(allowed.to(torch.float32), rest)
    return F.pad(bits, rest, value=_cpu.BARRED).contiguous(), weight.contiguous()
