"""Scale the attention logits of a diffusion model by one factor per layer. This file needs only torch.

The factors belong to one model and one image size (height, width), see `MODEL` and `SIZE`. Apply them to a pipeline of
diffusers or to its denoiser:

    with scaled(pipeline):
        image = pipeline(prompt, height=SIZE[0], width=SIZE[1]).images[0]

`apply(pipeline)` does the same until `remove(pipeline)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

LAW = ""
MODEL = ""
SIZE = (0, 0)
FACTORS: dict[str, tuple[int, bool, float | Sequence[float]]] = {}
"""Per layer: the number of image tokens, whether text may attend in the same call, and the factor or one per head."""


def apply(pipeline: Any) -> None:
    """Scale the layers of a pipeline's denoiser, or of a torch module, until `remove` is called."""
    for layers in _denoisers(pipeline):
        for name, layer in layers.items():
            if _is_scaled(layer):
                raise ValueError(f"{name} already has a law: call remove() first")
        for name, layer in layers.items():
            # The instance attribute is found before the method of the class, also by torch's own call of `forward`.
            object.__setattr__(layer, "forward", _Forward(name, layer.forward, layer.__dict__.get("forward")))


def remove(pipeline: Any) -> None:
    """Restore the layers. A pipeline without a law is not changed."""
    for layers in _denoisers(pipeline):
        for layer in layers.values():
            if _is_scaled(layer):
                before = layer.__dict__.pop("forward").before
                if before is not None:
                    object.__setattr__(layer, "forward", before)


@contextmanager
def scaled(pipeline: Any) -> Iterator[None]:
    """Scale the layers inside a `with` block."""
    apply(pipeline)
    try:
        yield
    finally:
        remove(pipeline)


class _Forward:
    """Takes the place of `forward` of an attention layer.

    Attributes:
        before: an earlier replacement of `forward`, such as accelerate's; None if there was none.
    """

    def __init__(self, name: str, inner: Callable[..., Any], before: Any) -> None:
        self.before = before
        self._name, self._inner = name, inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = _Scale(self._name)
        with mode:
            output = self._inner(*args, **kwargs)
        if not mode.calls:
            raise RuntimeError(
                f"{self._name} did not call torch's scaled_dot_product_attention, so its factor was not applied: "
                "select the native attention backend, or export scaled weights instead"
            )
        return output


class _Scale(TorchFunctionMode):
    """Multiplies the logits of the attention calls of one layer.

    Attributes:
        calls: number of attention calls.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.calls = 0
        self._name = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        kwargs.update(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
        query, key, value = (kwargs.pop(name) for name in ("query", "key", "value"))
        tokens, joint, factor = FACTORS[self._name]
        if self._is_visual(query.shape[-2], key.shape[-2], tokens, joint) and factor != 1.0:
            if isinstance(factor, float):
                scale = kwargs.get("scale")
                kwargs["scale"] = (1 / math.sqrt(query.shape[-1]) if scale is None else scale) * factor
            else:
                query = query * torch.tensor(factor).to(query).view(-1, 1, 1)
        return func(query, key, value, **kwargs)

    def _is_visual(self, queries: int, keys: int, tokens: int, joint: bool) -> bool:
        """Return whether image tokens attend to image tokens: other calls of the layer are cross-attention."""
        if queries == keys and (queries < tokens if joint else queries != tokens):
            raise ValueError(
                f"{self._name} has {queries} tokens instead of {tokens}: these factors are for {SIZE[0]}x{SIZE[1]} "
                "(height x width) pixels, and with tokens='all' for one prompt length. Export the law for the size and "
                "the prompt length that you sample"
            )
        return keys >= tokens if joint else keys == queries


def _is_scaled(layer: nn.Module) -> bool:
    return isinstance(layer.__dict__.get("forward"), _Forward)


def _denoisers(pipeline: Any) -> list[dict[str, nn.Module]]:
    """Return the layers of each module that has all of them: a pipeline may have two denoisers."""
    parts = [pipeline] if isinstance(pipeline, nn.Module) else list(pipeline.components.values())
    found = []
    for part in parts:
        modules = dict(part.named_modules()) if isinstance(part, nn.Module) else {}
        if FACTORS.keys() <= modules.keys():
            found.append({name: modules[name] for name in FACTORS})
    if not found:
        raise ValueError(f"this is not a model like {MODEL}: it lacks layers such as {next(iter(FACTORS), '')!r}")
    return found
