"""What is known of each attention row, means over rows with their standard errors, and the choice of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of every attention row of one call.

    Attributes:
        entropy: H in nats, 0 <= H <= ln(allowed keys).
        logit_variance: variance of the logits over the allowed keys, nats^2.
        attention_distance: root mean square distance that attention spans, in the unit of the positions; None without.
        counted: false for rows that may attend to no key at all; they are left out of means.
    """

    entropy: Float[Tensor, "batch heads queries"]
    logit_variance: Float[Tensor, "batch heads queries"]
    attention_distance: Float[Tensor, "batch heads queries"] | None
    counted: Bool[Tensor, "batch heads queries"]


def mean_over_rows(
    values: Float[Tensor, "batch heads queries"], counted: Bool[Tensor, "batch heads queries"] | None = None
) -> tuple[Float[Tensor, "batch heads"], Float[Tensor, "batch heads"]]:
    """Mean and standard deviation over the counted rows (all, without `counted`); NaN where none is counted."""
    if counted is None:
        variance, mean = torch.var_mean(values, -1, correction=0)
        return mean, variance.sqrt()
    weight = counted.to(values.dtype)
    count = weight.sum(-1)
    mean = (values * weight).sum(-1) / count
    variance = ((values - mean.unsqueeze(-1)).square() * weight).sum(-1) / count
    return mean, variance.sqrt()


def stratified_rows(total: int, chosen: int, seed: int = 0) -> Int[Tensor, " chosen"]:
    """`chosen` of `total` row indices, ascending, one drawn at random from each of `chosen` equal strata.

    Tokens are in raster order, so the strata spread the rows over the image. Every row is drawn with the probability
    `chosen / total`, hence the mean over the drawn rows is unbiased (a row on the edge of two strata may come twice).

    Raises:
        ValueError: unless 1 <= chosen <= total.
    """
    if not 1 <= chosen <= total:
        raise ValueError(f"rows must be between 1 and the {total} rows there are, not {chosen}")
    generator = torch.Generator().manual_seed(seed)
    offset = torch.rand(chosen, generator=generator, dtype=torch.float64)
    return ((torch.arange(chosen) + offset) * total / chosen).long().clamp_max(total - 1)


MASKED = -1e30
"""A bias at or below this bars its key, as -inf does; no sum of such numbers overflows float32."""


def default_scale(query: Float[Tensor, "batch heads queries width"]) -> float:
    """1/sqrt(width), the softmax scale of `scaled_dot_product_attention` when none is given."""
    return 1 / math.sqrt(query.shape[-1])


def precise_dtype(device: torch.device) -> torch.dtype:
    """The widest float of a device: float64, but float32 on Apple's mps."""
    return torch.float32 if device.type == "mps" else torch.float64
