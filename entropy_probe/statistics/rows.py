"""Statistics of attention rows, their means, and the choice of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RowMeans:
    """Means over the counted rows of one attention call; NaN if no row is counted.

    Attributes:
        entropy: mean H, nats.
        entropy_std: standard deviation of H over the rows, nats.
        logit_variance: mean variance of the logits, nats^2.
        attention_distance: mean distance, in the unit of the positions; None if no positions were given.
    """

    entropy: Float[Tensor, "batch heads"]
    entropy_std: Float[Tensor, "batch heads"]
    logit_variance: Float[Tensor, "batch heads"]
    attention_distance: Float[Tensor, "batch heads"] | None


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of every row of one attention call.

    Attributes:
        entropy: H in nats, 0 <= H <= ln(number of allowed keys).
        logit_variance: variance of the logits over the allowed keys, nats^2.
        log_sum: log-sum-exp of the logits, nats; -inf for rows whose keys are all masked.
        logit_mean: mean of the logits over the allowed keys, nats.
        attention_distance: attention-weighted root mean square distance between the query and its keys, in the unit
            of the positions; None if no positions were given.
        counted: False for rows whose keys are all masked. The means leave these rows out.
        reduced: the means, if the kernel has already computed them.
    """

    entropy: Float[Tensor, "batch heads queries"]
    logit_variance: Float[Tensor, "batch heads queries"]
    log_sum: Float[Tensor, "batch heads queries"]
    logit_mean: Float[Tensor, "batch heads queries"]
    attention_distance: Float[Tensor, "batch heads queries"] | None
    counted: Bool[Tensor, "batch heads queries"]
    reduced: RowMeans | None = None

    def means(self) -> RowMeans:
        """Return the means over the counted rows."""
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
    """Sample row indices: two at random from each of `chosen / 2` equal strata of `total` rows.

    Tokens are in raster order, so the strata spread the rows over the image. Each row has the same probability, hence
    the mean over the sampled rows is unbiased. The two rows of a stratum show how much the mean varies. They are
    sampled with replacement.

    Args:
        total: number of rows.
        chosen: number of sampled rows.
        generator: source of randomness; by default torch's global generator.
        items: shape of independent samples, for example (batch, heads).

    Returns:
        Indices in stratum order.

    Raises:
        ValueError: unless `chosen` is even and 2 <= chosen <= total.

    >>> stratified_rows(1024, 64, torch.Generator().manual_seed(0)).shape
    torch.Size([64])
    """
    if chosen % 2 or not 2 <= chosen <= total:
        raise ValueError(f"rows must be an even number between 2 and {total} (all rows), got {chosen}")
    strata = chosen // 2
    offset = torch.rand(*items, strata, 2, generator=generator, dtype=torch.float64)
    return ((torch.arange(strata)[:, None] + offset) * total / strata).long().clamp_max(total - 1).flatten(-2)


def standard_error(
    entropy: Float[Tensor, "batch heads rows"], counted: Bool[Tensor, "batch heads rows"]
) -> Float[Tensor, "batch heads"]:
    """Return the standard error of the mean entropy over rows sampled by `stratified_rows`, in nats.

    With two samples x, y in each of L strata, sum (x - y)^2 / 4 L^2 estimates the variance of the mean without bias.
    Rows that are not counted enter as in a ratio estimate.

    Args:
        entropy: of the sampled rows in stratum order, nats.
        counted: see `RowStatistics`.

    Source: Cochran, Sampling Techniques, 1977, section 5A.12.

    >>> entropy = torch.tensor([[[1.0, 3.0, 2.0, 2.5]]])  # two strata of two rows
    >>> round(standard_error(entropy, torch.ones_like(entropy, dtype=torch.bool)).item(), 4)
    0.5154
    """
    weight = counted / counted.float().mean(-1, keepdim=True)
    known = entropy.nan_to_num()
    deviation = weight * (known - (weight * known).mean(-1, keepdim=True))
    pairs: Tensor = deviation.unflatten(-1, (-1, 2))
    return pairs.diff(dim=-1).square().sum((-2, -1)).sqrt() / deviation.shape[-1]


def default_scale(query: Float[Tensor, "*items queries width"]) -> float:
    """Return 1/sqrt(width), the softmax scale of `scaled_dot_product_attention` if none is given.

    >>> default_scale(torch.zeros(1, 2, 9, 4))
    0.5
    """
    return 1 / math.sqrt(query.shape[-1])


def precise_dtype(device: torch.device) -> torch.dtype:
    """Return the widest float of a device: float64, but float32 on Apple's mps."""
    return torch.float32 if device.type == "mps" else torch.float64
