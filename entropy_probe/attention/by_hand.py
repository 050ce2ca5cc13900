"""Find attention that a module computes without `scaled_dot_product_attention`, from the operations of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_PRODUCTS = {
    "matmul": 2, "__matmul__": 2, "__rmatmul__": 2, "bmm": 2, "mm": 2, "baddbmm": 3, "baddbmm_": 3, "einsum": 2,
}  # fmt: skip
"""Matrix products by name, and their number of tensors; the last two are multiplied."""
_EXPONENTIALS = ("softmax", "exp", "exp_", "exp2", "exp2_", "_softmax")
_NEW_FEATURES = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "layer_norm",
    "group_norm",
    "rms_norm",
    "batch_norm",
    "embedding",
)
"""Layers whose results are new features, no longer scores."""
_WHOLE = (F.multi_head_attention_forward, torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd)
"""Functions of torch that compute the attention of `nn.MultiheadAttention` without a visible call."""


class ByHand:
    """Follows attention scores through one forward pass: a product of activations, a softmax, a product with values.

    The scores are known by the identity of their tensors. Attention with a single query, which pools text into one
    token, does not count.

    >>> q, found = torch.randn(1, 9, 4), ByHand()
    >>> def step(function, *args):
    ...     result = function(*args)
    ...     print(found.completes_attention(function, args, {}, result))
    ...     return result
    >>> weights = step(torch.softmax, step(torch.matmul, q, q.mT), -1)
    False
    False
    >>> output = step(torch.matmul, weights, q)
    True
    """

    def __init__(self) -> None:
        self._weights: Any = WeakTensorKeyDictionary()  # scores: False before the softmax, True after it

    def completes_attention(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> bool:
        """Note an operation. Return whether it completes the attention of a module.

        Args:
            func: the function.
            args: its positional arguments.
            kwargs: its keyword arguments.
            result: what it returned.
        """
        name = getattr(func, "__name__", "")
        if func in _WHOLE:
            return _has_several_queries(func, args, kwargs)
        tensors = list(_tensors((*args, *kwargs.values())))
        if name in _PRODUCTS:
            return self._multiplied(tensors[_PRODUCTS[name] - 2 :], result)
        if isinstance(result, Tensor) and name not in _NEW_FEATURES and self._weights:
            known = [self._weights[tensor] for tensor in tensors if tensor in self._weights]
            if known:
                self._weights[result] = any(known) or name in _EXPONENTIALS
        return False

    def _multiplied(self, factors: list[Tensor], result: Any) -> bool:
        if any(self._weights.get(factor, False) for factor in factors):
            return True
        activations = len(factors) > 1 and not any(map(_is_weight, factors))
        if activations and isinstance(result, Tensor) and result.ndim > 1 and min(result.shape[-2:]) > 1:
            self._weights[result] = False
        return False


def _has_several_queries(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    query = args[0] if args else kwargs.get("query", kwargs.get("src"))
    return not (func is F.multi_head_attention_forward and isinstance(query, Tensor) and len(query) == 1)


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, also in lists, as `torch.cat` and `torch.einsum` receive them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (one for one in value if isinstance(one, Tensor))
