"""The reference for a capture: attention maps in float64, from the inputs of the real attention calls."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def eager(denoiser: nn.Module, hidden: Sequence[str], maps: list[Tensor]) -> Iterator[None]:
    """Compute the attention map of every call of torch's attention inside a denoiser.

    Args:
        denoiser: the model; its output does not change.
        hidden: modules whose calls are skipped.
        maps: the maps are appended to this list.
    """
    fused = F.scaled_dot_product_attention
    running: list[bool] = []
    inside: list[bool] = []

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        output = fused(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        query, key = query.to(output.dtype), key.to(output.dtype)  # the dtype of the kernel, under autocast
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        logits = query.double() @ key.double().mT * scale
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril() if is_causal else attn_mask
        if mask is not None:
            barred = ~mask if mask.dtype == torch.bool else mask <= -9000
            added = 0.0 if mask.dtype == torch.bool else mask
            logits = (logits + added).masked_fill(barred, -torch.inf)
        if running and not inside:
            maps.append(logits.softmax(-1))
        return output

    handles = []
    for part, now in [(denoiser, running), *((denoiser.get_submodule(name), inside) for name in hidden)]:
        handles.append(part.register_forward_pre_hook(lambda *_, now=now: now.append(True)))
        handles.append(part.register_forward_hook(lambda *_, now=now: now.clear()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        yield
    for handle in handles:
        handle.remove()


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy of every row, in nats."""
    return torch.special.entr(weights).sum(-1)
