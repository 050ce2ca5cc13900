"""Select the kernel for an attention call: exact row statistics in O(N) memory, without an attention map.

With s_ij = scale * <q_i, k_j> and A = softmax(s),

    H_i = logsumexp_j(s_ij) - sum_j A_ij s_ij

`flash` selects the kernel for a call:

- `triton`, on CUDA: one pass over the keys;
- `torch_fused`, on CUDA devices on which Triton does not work: one fused attention call;
- `cpu`, compiled, on a CPU if every query has the same mask: one pass over the keys;
- `torch_blocks`, for all other calls, and in float64 for logits that are too large for float32.

The kernels subtract the mean key from the keys, or its logit from the logits. This shifts all logits of a row equally,
which changes neither the entropy nor the variance, and makes the mean logit 0. Small logits then need no row maximum.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from entropy_probe.statistics import cpu
from entropy_probe.statistics.masks import check_one_mask, key_bias, same_for_all_queries, without_masked_keys
from entropy_probe.statistics.rows import RowStatistics, default_scale, precise_dtype
from entropy_probe.statistics.torch_blocks import by_blocks
from entropy_probe.statistics.torch_fused import fused

LARGE_LOGIT = 40.0
"""Above this log-sum-exp of the centred logits, in nats, float32 rounding may change H of a row by more than 3e-5."""

LARGE_HALF_LOGIT = 1_000.0
"""The same limit for inputs in half precision, whose rounding changes H by 1e-3."""

LARGE_DIFFERENCE = 16.0
"""The same limit for the fused call, which computes the entropy as a difference of two numbers of this size."""

WITHOUT_TRITON: set[torch.device] = set()
"""Devices on which Triton failed. Compiling again in every call would take seconds each time."""


def flash(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None = None,
) -> RowStatistics:
    """Compute the statistics of every attention row, equal to `dense`, in memory linear in the number of tokens.

    The arguments are those of `dense`. Half precision is computed in float32. There, the entropy of a row has an error
    of at most 3e-5 nats, and the mean over many rows less than 1e-6. Calls with larger logits are computed in float64.

    Raises:
        ValueError: for a mask combined with `is_causal`.

    >>> query, key = torch.randn(1, 2, 5, 8), torch.zeros(1, 2, 16, 8)
    >>> flash(query, key).means().entropy.exp().round(decimals=2)  # equal logits: H = ln 16
    tensor([[16., 16.]])
    """
    scale = default_scale(query) if scale is None else scale
    check_one_mask(mask, is_causal)
    dtype = torch.promote_types(query.dtype, torch.float32)
    on_cuda = runs_on_cuda(query)
    if mask is not None and query.numel() and key.numel():
        key = without_masked_keys(key, mask, query.shape[1])
    if on_cuda and dtype == torch.float32 and query.numel() and key.numel():
        by_triton = _try_triton(query, key, mask, is_causal, scale, positions)
        if by_triton is not None:
            return by_triton
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    precise = precise_dtype(query.device)
    shared = not is_causal and same_for_all_queries(mask)
    if _fits_compiled_kernel(query, key, mask, is_causal):
        query, key = query.to(dtype), key.to(dtype)
        bias = None if mask is None else key_bias(mask, key)
        result, exact = cpu.by_kernel(query, key, bias, scale, positions, LARGE_LOGIT)
    elif not on_cuda:
        result, largest = by_blocks(query.to(dtype), key.to(dtype), mask, is_causal, scale, positions)
        exact = dtype == precise or largest <= LARGE_LOGIT
    elif shared and query.device in WITHOUT_TRITON:
        result, largest = fused(query.to(dtype), key.to(dtype), mask, scale, positions)
        exact = dtype == precise or largest <= LARGE_DIFFERENCE
    else:
        exact = False  # torch may round float32 products to TF32 on CUDA
    if exact:
        return result
    return by_blocks(query.to(precise), key.to(precise), mask, is_causal, scale, positions)[0]


def curve(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    scale_factors: Sequence[float],
    mask: Shaped[Tensor, "*#mask"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> list[RowStatistics]:
    """Compute `flash` for several scale factors g: with the softmax scale g * scale, without positions.

    The compiled kernel computes the matrix product once. Each further scale factor costs one exponential per logit.

    Args:
        query: as for `flash`.
        key: as for `flash`.
        scale_factors: values of g.
        mask: as for `flash`.
        is_causal: as for `flash`.
        scale: softmax scale at g = 1; by default 1/sqrt(width).
        enable_gqa: as for `flash`.

    Returns:
        The statistics for each scale factor, in their order.

    Raises:
        ValueError: for a mask combined with `is_causal`.

    >>> query, key = torch.randn(1, 1, 5, 8), torch.randn(1, 1, 16, 8)
    >>> uniform, trained = curve(query, key, [0.0, 1.0])
    >>> bool((uniform.entropy > trained.entropy).all())
    True
    """
    scale = default_scale(query) if scale is None else scale
    results: list[tuple[RowStatistics | None, bool]] = [(None, False)] * len(scale_factors)
    if _fits_compiled_kernel(query, key, mask, is_causal):
        repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1) if enable_gqa else key
        query32, key32 = query.to(torch.float32), repeated.to(torch.float32)
        bias = None if mask is None else key_bias(mask, key32)
        results = [
            result
            for start in range(0, len(scale_factors), cpu.CURVE)
            for result in cpu.curve_by_kernel(
                query32, key32, bias, scale, tuple(scale_factors[start : start + cpu.CURVE]), None, LARGE_LOGIT
            )
        ]
    return [
        statistics if statistics and exact else flash(query, key, mask, is_causal, scale * g, enable_gqa)
        for g, (statistics, exact) in zip(scale_factors, results, strict=True)
    ]


def _fits_compiled_kernel(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    is_causal: bool,
) -> bool:
    on_cpu = cpu.COMPILED and query.device.type == "cpu" and query.dtype != torch.float64
    return bool(on_cpu and not is_causal and same_for_all_queries(mask) and query.numel() and key.numel())


def runs_on_cuda(query: Tensor) -> bool:
    """Return whether a call runs on CUDA."""
    return query.device.type == "cuda"


def _try_triton(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    mask: Shaped[Tensor, "*#mask"] | None,
    is_causal: bool,
    scale: float,
    positions: tuple[Float[Tensor, "queries 2"], Float[Tensor, "keys 2"]] | None,
) -> RowStatistics | None:
    """Return the result of the Triton kernel; None if Triton does not work on the device, or float32 is too narrow."""
    if query.device in WITHOUT_TRITON:
        return None
    try:
        from entropy_probe.statistics import triton

        result = triton.by_triton(query, key, mask, is_causal, scale, positions)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton raises many types: no C compiler, old driver or GPU, no shared memory
        WITHOUT_TRITON.add(query.device)
        warnings.warn(
            f"Triton cannot compile the fused kernel on {query.device} ({type(error).__name__}: {error}). "
            "Using torch's attention instead: equally exact, at twice the cost. Triton needs a C compiler and a GPU of "
            "compute capability 8.0",
            stacklevel=3,
        )
        return None
    return result if _is_exact(result, torch.promote_types(query.dtype, key.dtype)) else None


def _is_exact(statistics: RowStatistics, dtype: torch.dtype) -> bool:
    """Return whether the logits of the Triton kernel are small enough for float32. False for NaN."""
    if dtype == torch.float32:  # the kernel gets centred keys
        sizes, limit = statistics.log_sum - statistics.logit_mean, LARGE_LOGIT
    else:
        sizes, limit = torch.maximum(statistics.log_sum.abs(), statistics.logit_mean.abs()), LARGE_HALF_LOGIT
    return bool(sizes.masked_fill(~statistics.counted, 0.0).max() <= limit)
