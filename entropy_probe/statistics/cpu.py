"""The fused CPU kernel, `cpu.c`: one pass over the keys, without an attention map or intermediate tensors.

The package installation compiles it if there is a C compiler: once for every processor, and once for processors with
AMX, whose tiles triple the speed of the matrix product. Without a compiler, `flash` uses torch operations.
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
        """Fill the tensors at `addresses`. Return one bit per scale factor: 1 if float32 represents the result."""
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
"""Up to this number of keys, packing queries for the AMX tiles takes longer than the tiles save."""

CURVE = 8
"""Maximum number of scale factors in one kernel call; defined in `cpu.c`."""

_TRUE = torch.ones((), dtype=torch.bool)


def by_kernel(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    bias: tuple[Bool[Tensor, "batch heads keys"], Float[Tensor, "batch heads keys"]] | None,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
    limit: float,
    kernel: Kernel | None = None,
) -> tuple[RowStatistics, bool]:
    """Compute the statistics of every row of a non-empty float32 call on the CPU, and whether they are exact.

    Args:
        query: queries, in float32.
        key: keys, in float32.
        bias: the allowed keys, and the number that is added to the logits of each key, nats.
        scale: softmax scale.
        positions: token centres of the queries and of the keys, for the attention distance.
        limit: maximum log-sum-exp of the centred logits, nats, at which float32 is exact enough.
        kernel: the build to use; by default the fastest for this number of keys.

    Raises:
        ValueError: if the shapes of the key or of the positions do not match the query.
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
    """Compute `by_kernel` for at most `CURVE` scale factors with one matrix product."""
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    _check_shapes(query, key, positions)
    query, key = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key))
    rows = query.new_empty(len(scale_factors), 5, batch, heads, queries)
    means = query.new_empty(len(scale_factors), 4, batch, heads)
    counted = _TRUE.expand(batch, heads, queries)
    key_bias: Tensor | None = None
    centres: tuple[Tensor | None, ...] = (None, None)
    if bias is not None:
        key_bias = bias[1].masked_fill(~bias[0], -math.inf).contiguous()
        counted = bias[0].any(-1, keepdim=True).expand(batch, heads, queries)
    if positions is not None:
        centres = tuple(p.to(torch.float32).contiguous() for p in positions)
    tensors = (query, key, key_bias, *centres, rows, means)
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
    return [
        (_result(own_rows, own_means, counted, positions is not None), bool(exact >> number & 1))
        for number, (own_rows, own_means) in enumerate(zip(rows.unbind(), means.unbind(), strict=True))
    ]


def _check_shapes(
    query: Float[Tensor, "batch heads queries width"],
    key: Tensor,
    positions: tuple[Tensor, Tensor] | None,
) -> None:
    """Reject shapes that do not match. The kernel gets addresses only and would read beyond the tensors."""
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    if key.shape != (batch, heads, keys, width):
        raise ValueError(
            f"key must have the shape of query except for the tokens, got {tuple(key.shape)} for a query of shape "
            f"{tuple(query.shape)}"
        )
    if positions is not None and [len(p) for p in positions] != [queries, keys]:
        raise ValueError(
            f"positions must contain {queries} queries and {keys} keys, got {len(positions[0])} and {len(positions[1])}"
        )


def _result(
    rows: Float[Tensor, "5 batch heads queries"],
    means: Float[Tensor, "4 batch heads"],
    counted: Bool[Tensor, "batch heads queries"],
    with_distance: bool,
) -> RowStatistics:
    entropy, variance, log_sum, logit_mean, distance = rows.unbind()
    mean, deviation, mean_variance, mean_distance = means.unbind()
    reduced = RowMeans(mean, deviation, mean_variance, mean_distance if with_distance else None)
    return RowStatistics(entropy, variance, log_sum, logit_mean, distance if with_distance else None, counted, reduced)
