"""Logit variance and attention distance from moments of the keys, without an attention map."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def logit_variance(
    query: Float[Tensor, "*maps queries width"],
    covariance: Float[Tensor, "*maps width width"],
    scale: float,
) -> Float[Tensor, "*maps queries"]:
    """Return the variance over the keys of scale * <q, k>: a quadratic form in the covariance of the keys."""
    variance: Tensor = scale**2 * torch.linalg.vecdot(query @ covariance, query)
    return variance.clamp_min(0)


def position_features(positions: Float[Tensor, "tokens 2"]) -> Float[Tensor, "tokens 3"]:
    """Return x, y and x^2 + y^2. Their attention-weighted means determine the mean squared distance."""
    return torch.cat([positions, positions.square().sum(-1, keepdim=True)], -1)


def attention_distance(
    query_positions: Float[Tensor, "queries 2"], means: Float[Tensor, "*maps queries 3"]
) -> Float[Tensor, "*maps queries"]:
    """Return the root mean square distance between each query and the keys it attends to.

    Args:
        query_positions: centre of each query token.
        means: attention-weighted means of `position_features` over the keys.
    """
    form = torch.cat([-2 * query_positions, torch.ones_like(query_positions[:, :1])], -1)
    squared: Tensor = torch.linalg.vecdot(means, form) + query_positions.square().sum(-1)
    return squared.clamp_min(0).sqrt()


def mean_and_rest(
    key: Float[Tensor, "*maps keys width"],
) -> tuple[Float[Tensor, "*maps 1 width"], Float[Tensor, "*maps keys width"]]:
    """Return the mean of the keys, and the keys minus it.

    The mean of the rest is subtracted once more: a rounded mean of large keys would shift the small differences.

    >>> key = torch.tensor([1e7, 1e7 + 1, 1e7 + 2, 1e7 + 4]).view(4, 1)
    >>> mean_and_rest(key)[1].flatten()
    tensor([-1.7500, -0.7500,  0.2500,  2.2500])
    """
    mean = key.mean(-2, keepdim=True)
    centred = key - mean
    rest = centred.mean(-2, keepdim=True)
    return mean + rest, centred.sub_(rest)
