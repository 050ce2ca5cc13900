"""Attention masks as `scaled_dot_product_attention` defines them: boolean or additive, broadcast over maps and rows."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

MASKED_BIAS = -9_000.0
"""An additive mask at or below this value masks its key, as -inf does: diffusers writes -10,000 for prompt padding."""

MASKED_LOGIT = -1e30
"""Replaces -inf for masked logits: sums of it stay finite in float32."""


def key_bias(
    mask: Shaped[Tensor, "*#mask"], key: Float[Tensor, "batch heads keys width"]
) -> tuple[Bool[Tensor, "batch heads keys"], Float[Tensor, "batch heads keys"]]:
    """Return the allowed keys and the bias of their logits, for a mask that is the same for every query."""
    row = mask.squeeze(-2) if mask.ndim > 1 else mask
    if mask.dtype == torch.bool:
        allowed = row.expand(key.shape[:-1])
        return allowed, torch.zeros_like(key[..., 0])
    row = row.to(key.dtype).expand(key.shape[:-1])
    allowed = row > MASKED_BIAS
    return allowed, row.masked_fill(~allowed, 0.0)


def without_masked_keys(
    key: Float[Tensor, "batch kv_heads keys width"], mask: Shaped[Tensor, "*#mask"], heads: int
) -> Float[Tensor, "batch kv_heads keys width"]:
    """Return the keys, with 0 in place of those that no query may attend to. They may contain any value.

    >>> without_masked_keys(torch.full((1, 1, 3, 1), 1e20), torch.tensor([True, False, True]), heads=2).flatten()
    tensor([1.0000e+20, 0.0000e+00, 1.0000e+20])
    """
    allowed = mask if mask.dtype == torch.bool else mask > MASKED_BIAS
    attended = (allowed.any(-2) if mask.ndim > 1 else allowed).expand(key.shape[0], heads, key.shape[2])
    by_head = attended.unflatten(1, (key.shape[1], -1)).any(2)
    return key.masked_fill(~by_head.unsqueeze(-1), 0.0)


def same_for_all_queries(mask: Shaped[Tensor, "*#mask"] | None) -> bool:
    """Return whether every query has the same mask."""
    return mask is None or mask.ndim < 2 or mask.shape[-2] == 1


def check_one_mask(mask: Shaped[Tensor, "*#mask"] | None, is_causal: bool) -> None:
    """Reject a mask combined with `is_causal`, as `scaled_dot_product_attention` does.

    Raises:
        ValueError: if both are given.
    """
    if is_causal and mask is not None:
        raise ValueError("mask and is_causal cannot be combined, got both: pass one of them")
