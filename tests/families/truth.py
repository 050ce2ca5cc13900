"""What a capture is held against: attention written out in float64, fed by a model's own processors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def eager(denoiser: nn.Module, hidden: Sequence[str], maps: list[Tensor]) -> Iterator[None]:
    """Attention written out, in place of torch's: the map of what a model's own processors feed it.

    Args:
        denoiser: the model; the output stays what torch's own call gives.
        hidden: modules whose attention is left out.
        maps: takes one map after the other, of what the denoiser calls: not of the text encoder before it.
    """
    fused = F.scaled_dot_product_attention
    running: list[bool] = []
    inside: list[bool] = []

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        output = fused(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        query, key = query.to(output.dtype), key.to(output.dtype)  # in which the kernel computes, under autocast
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
    """Of every row, nats."""
    return torch.special.entr(weights).sum(-1)
