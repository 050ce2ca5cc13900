"""The fused kernel for CPUs, `cpu.c`: one pass over the keys, no attention map, no intermediate tensor.

It is compiled when the package is installed, where there is a C compiler, once for any machine and once for those with
AMX, whose tiles make the product three times as fast; `flash` does without it elsewhere.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_probe.statistics.rows import RowMeans, RowStatistics


@runtime_checkable
class Kernel(Protocol):
    """A build of `cpu.c`."""

    def statistics(
        self,
        addresses: tuple[int, ...],
        sizes: tuple[int, int, int, int, int],
        query_strides: tuple[int, ...],
        key_strides: tuple[int, ...],
        scale: float,
        scale_factors: tuple[float, ...],
        limit: float,
        threads: int,
        /,
    ) -> int:
        """Fill the tensors at `addresses`; one bit per scale factor says whether float32 holds the answer."""
        ...


def _kernels() -> dict[str, Kernel]:
    """Return the builds that this machine can run. The last is the fastest except for few keys."""
    builds: dict[str, Kernel] = {}
    try:
        from entropy_probe.statistics import _cpu  # type: ignore[attr-defined]

        builds["_cpu"] = _cpu
    except ImportError:  # no compiler at installation
        pass
    try:
        from entropy_probe.statistics import _cpu_amx  # type: ignore[attr-defined]

        builds["_cpu_amx"] = _cpu_amx
    except ImportError:  # no compiler at installation, or a processor without AMX
        pass
    return builds


KERNELS = _kernels()
COMPILED = bool(KERNELS)

FEW_KEYS = 64
"""Up to here, laying queries out for the tiles of AMX takes more time than the tiles save."""

CURVE = 8
"""Multipliers that the kernel takes at once; of `cpu.c`."""

_ALL = torch.ones((), dtype=torch.bool)


def by_kernel(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    bias: tuple[Bool[Tensor, "batch heads keys"], Float[Tensor, "batch heads keys"]] | None,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
    limit: float,
    kernel: Kernel | None = None,
) -> tuple[RowStatistics, bool]:
    """Statistics of every row of a float32 call on the CPU that is not empty, and whether they are exact.

    Args:
        query: in float32.
        key: in float32.
        bias: which keys may be attended, and what is added to their logits, nats.
        scale: factor of the logits.
        positions: places of the queries and of the keys, for the attention distance.
        limit: the log-sum-exp of the centred logits, nats, up to which float32 holds them exactly enough.
        kernel: the build to use; the fastest for so many keys if none.

    Raises:
        ValueError: for a key or positions that do not fit the query.
    """
    return curve_by_kernel(query, key, bias, scale, (1.0,), positions, limit, kernel)[0]


def curve_by_kernel(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    bias: tuple[Bool[Tensor, "batch heads keys"], Float[Tensor, "batch heads keys"]] | None,
    scale: float,
    scale_factors: tuple[float, ...],
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
    limit: float,
    kernel: Kernel | None = None,
) -> list[tuple[RowStatistics, bool]]:
    """As `by_kernel`, for at most `CURVE` scale_factors of the scale: their logits are those of one matrix product."""
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    if key.shape != (batch, heads, keys, width):  # the kernel gets addresses, and would read what is not there
        raise ValueError(f"a key of shape {tuple(key.shape)} does not fit a query of shape {tuple(query.shape)}")
    if positions is not None and [len(p) for p in positions] != [queries, keys]:
        raise ValueError(f"give places for {queries} queries and {keys} keys, not {[len(p) for p in positions]}")
    query, key = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key))
    rows = query.new_empty(len(scale_factors), 5, batch, heads, queries)
    means = query.new_empty(len(scale_factors), 4, batch, heads)
    counted = _ALL.expand(batch, heads, queries)
    added: Tensor | None = None
    places: tuple[Tensor | None, ...] = (None, None)
    if bias is not None:
        added = bias[1].masked_fill(~bias[0], -math.inf).contiguous()
        counted = bias[0].any(-1, keepdim=True).expand(batch, heads, queries)
    if positions is not None:
        places = tuple(p.to(torch.float32).contiguous() for p in positions)
    tensors = (query, key, added, *places, rows, means)
    if kernel is None:
        builds = tuple(KERNELS.values())
        kernel = builds[0] if keys <= FEW_KEYS else builds[-1]
    exact = kernel.statistics(
        tuple(0 if t is None else t.data_ptr() for t in tensors),
        (batch, heads, queries, keys, width),
        query.stride()[:3],
        key.stride()[:3],
        scale,
        scale_factors,
        limit,
        torch.get_num_threads(),
    )
    found = []
    for number, (own_rows, own_means) in enumerate(zip(rows.unbind(), means.unbind(), strict=True)):
        entropy, variance, log_sum, logit_mean, apart = own_rows.unbind()
        mean, deviation, mean_variance, mean_apart = own_means.unbind()
        distance, mean_distance = (None, None) if positions is None else (apart, mean_apart)
        reduced = RowMeans(mean, deviation, mean_variance, mean_distance)
        statistics = RowStatistics(entropy, variance, log_sum, logit_mean, distance, counted, reduced)
        found.append((statistics, bool(exact >> number & 1)))
    return found
