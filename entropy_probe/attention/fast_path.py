"""The modules of torch that compute attention in a fused function, unless a function mode is active."""

from __future__ import annotations

import torch
from torch import nn

_ENCODERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer)


def has_fast_path(module: nn.Module) -> bool:
    """Return whether a module runs the forward of torch's encoders or of its `nn.MultiheadAttention`.

    >>> has_fast_path(nn.TransformerEncoderLayer(8, 2)), has_fast_path(nn.Linear(8, 8))
    (True, False)
    """
    forward = type(module).forward
    for kind in (*_ENCODERS, nn.MultiheadAttention):
        if isinstance(module, kind):
            return forward is kind.forward or "__class__" in forward.__code__.co_freevars  # or calls super().forward
    return False


def may_take_fast_path(module: nn.Module) -> bool:
    """Return whether an active function mode could change what a module computes, although it would see no call.

    torch's fast path differs from its slow path in the last digits. torch does not take it while a function mode is
    active, for gradients, or in training. `nn.MultiheadAttention` never makes a visible call.

    Args:
        module: a module with a fast path.

    >>> layer = nn.TransformerEncoderLayer(8, 2)
    >>> may_take_fast_path(layer)
    False
    >>> with torch.no_grad():
    ...     may_take_fast_path(layer.eval())
    True
    """
    if isinstance(module, nn.MultiheadAttention):
        return True
    if all(part.training for part in module.modules()):
        return False
    with torch._C.DisableTorchFunction():  # modes of other libraries see no access of these weights
        return not (torch.is_grad_enabled() and any(weight.requires_grad for weight in module.parameters()))
