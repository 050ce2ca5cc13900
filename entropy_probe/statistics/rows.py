"""What is known of each attention row, means over rows, and the choice of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RowMeans:
    """Means over the counted rows of one call; NaN where none is counted.

    Attributes:
        entropy: mean H, nats.
        entropy_std: standard deviation of H over the rows, nats.
        logit_variance: mean variance of the logits, nats^2.
        attention_distance: mean distance, in the unit of the positions; None without.
    """

    entropy: Float[Tensor, "batch heads"]
    entropy_std: Float[Tensor, "batch heads"]
    logit_variance: Float[Tensor, "batch heads"]
    attention_distance: Float[Tensor, "batch heads"] | None


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of every attention row of one call.

    Attributes:
        entropy: H in nats, 0 <= H <= ln(allowed keys).
        logit_variance: variance of the logits over the allowed keys, nats^2.
        log_sum: log-sum-exp of the logits, nats; -inf for rows that may attend to no key.
        logit_mean: mean of the logits over the allowed keys, nats.
        attention_distance: root mean square distance that attention spans, in the unit of the positions; None without.
        counted: false for rows that may attend to no key at all; they are left out of means.
        reduced: the means, where the kernel that made the rows has taken them too.
    """

    entropy: Float[Tensor, "batch heads queries"]
    logit_variance: Float[Tensor, "batch heads queries"]
    log_sum: Float[Tensor, "batch heads queries"]
    logit_mean: Float[Tensor, "batch heads queries"]
    attention_distance: Float[Tensor, "batch heads queries"] | None
    counted: Bool[Tensor, "batch heads queries"]
    reduced: RowMeans | None = None

    def means(self) -> RowMeans:
        """Means over the counted rows."""
        if self.reduced is not None:
            return self.reduced
        count = self.counted.sum(-1)

        def mean(rows: Float[Tensor, "batch heads queries"]) -> Float[Tensor, "batch heads"]:
            return rows.masked_fill(~self.counted, 0.0).sum(-1) / count

        entropy = mean(self.entropy)
        return RowMeans(
            entropy=entropy,
            entropy_std=mean((self.entropy - entropy.unsqueeze(-1)).square()).sqrt(),
            logit_variance=mean(self.logit_variance),
            attention_distance=None if self.attention_distance is None else mean(self.attention_distance),
        )


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


BARRED = -9_000.0
"""A bias at or below this bars its key, as -inf does: diffusers writes -10,000 for the padding of a prompt."""

MASKED = -1e30
"""Stands for -inf where sums of it must not overflow float32."""


def default_scale(query: Float[Tensor, "batch heads queries width"]) -> float:
    """1/sqrt(width), the softmax scale of `scaled_dot_product_attention` when none is given."""
    return 1 / math.sqrt(query.shape[-1])


def precise_dtype(device: torch.device) -> torch.dtype:
    """The widest float of a device: float64, but float32 on Apple's mps."""
    return torch.float32 if device.type == "mps" else torch.float64
