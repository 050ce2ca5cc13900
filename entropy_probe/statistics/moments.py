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
