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


def stratified_rows(
    total: int, chosen: int, generator: torch.Generator | None = None, items: tuple[int, ...] = ()
) -> Int[Tensor, "*items chosen"]:
    """Row indices, two drawn at random from each of `chosen / 2` equal strata of `total` rows, stratum by stratum.

    Tokens are in raster order, so the strata spread the rows over the image. Every draw is any row with the same
    probability, taken over all strata, hence the mean over the drawn rows is unbiased; two in a stratum show how much
    it varies (a row may come twice). Each of the `items` has a draw of its own.

    Raises:
        ValueError: unless `chosen` is even and 2 <= chosen <= total.
    """
    if chosen % 2 or not 2 <= chosen <= total:
        raise ValueError(f"rows are drawn in pairs, between 2 and the {total} there are, not {chosen}")
    strata = chosen // 2
    offset = torch.rand(*items, strata, 2, generator=generator, dtype=torch.float64)
    return ((torch.arange(strata)[:, None] + offset) * total / strata).long().clamp_max(total - 1).flatten(-2)


def standard_error(statistics: RowStatistics) -> Float[Tensor, "batch heads"]:
    """Standard error of the mean entropy over rows that `stratified_rows` has drawn, nats.

    With two draws x, y in each of L strata the variance of the mean is estimated without bias by
    sum (x - y)^2 / 4 L^2 (Cochran, Sampling Techniques, 1977, section 5A.12); rows that count for nothing enter as in
    a ratio estimate.
    """
    share = statistics.counted / statistics.counted.float().mean(-1, keepdim=True)
    mean = (share * statistics.entropy.nan_to_num()).mean(-1, keepdim=True)
    deviation = share * (statistics.entropy.nan_to_num() - mean)
    pairs: Tensor = deviation.unflatten(-1, (-1, 2))
    return pairs.diff(dim=-1).square().sum((-2, -1)).sqrt() / deviation.shape[-1]


BARRED = -9_000.0
"""A bias at or below this bars its key, as -inf does: diffusers writes -10,000 for the padding of a prompt."""

MASKED = -1e30
"""Stands for -inf where sums of it must not overflow float32."""


def default_scale(query: Float[Tensor, "*items queries width"]) -> float:
    """1/sqrt(width), the softmax scale of `scaled_dot_product_attention` when none is given."""
    return 1 / math.sqrt(query.shape[-1])


def precise_dtype(device: torch.device) -> torch.dtype:
    """The widest float of a device: float64, but float32 on Apple's mps."""
    return torch.float32 if device.type == "mps" else torch.float64
