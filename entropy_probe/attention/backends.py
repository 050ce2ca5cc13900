"""Run diffusers' attention through torch's `scaled_dot_product_attention` for a while, then restore the backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn

NATIVE = "native"
"""Name of the backend that calls torch's function."""

NATIVE_PROCESSORS = {
    "AttnProcessor": "AttnProcessor2_0",
    "SlicedAttnProcessor": "AttnProcessor2_0",
    "XFormersAttnProcessor": "AttnProcessor2_0",
    "AttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "SlicedAttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "XFormersAttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "XFormersJointAttnProcessor": "JointAttnProcessor2_0",
}
"""Processors of diffusers that do not call torch's function, and the processors with the same attention that do."""


_OF_CLASS = object()
"""Marks an attribute that only the class defines."""


@contextmanager
def native_attention(denoiser: nn.Module) -> Iterator[None]:
    """Select the native attention backend of diffusers inside a `with` block, then restore every layer.

    This covers the backends of `set_attention_backend`, of the whole process and of single layers, and the processors
    of attention slicing, xformers and eager attention. Processors with weights, such as those of IP-Adapter, layers for
    which the processors differ in more than rounding, and modules of other libraries are left as they are. The backend
    of the process is restored correctly only if such blocks do not overlap in several threads.

    >>> from diffusers.models.attention_processor import Attention, AttnProcessor
    >>> layer = Attention(8, heads=2, dim_head=4, processor=AttnProcessor())
    >>> with native_attention(layer):
    ...     print(type(layer.processor).__name__)
    AttnProcessor2_0
    >>> print(type(layer.processor).__name__)
    AttnProcessor
    """
    restore: list[Callable[[], None]] = []
    try:
        with _native_process():
            for module in denoiser.modules():
                processor = getattr(module, "processor", None)
                if hasattr(processor, "_attention_backend"):
                    restore.append(_replaced(processor, "_attention_backend", NATIVE))
                elif (native := _native_processor(module, processor)) is not None:
                    restore.append(_replaced(module, "processor", native))
            yield
    finally:
        for undo in reversed(restore):
            undo()


def _native_process() -> AbstractContextManager[Any]:
    """Return the context that selects the native backend for layers without a choice of their own."""
    try:
        from diffusers.models.attention_dispatch import attention_backend
    except ImportError:  # diffusers before 0.35
        return nullcontext()
    context: AbstractContextManager[Any] = attention_backend(NATIVE)
    return context


def _native_processor(layer: nn.Module, processor: object) -> object | None:
    """Return a processor that computes the same attention with torch's function; None if none is known.

    Processors without torch's function ignore the norms of queries and keys. Those with it ignore an own scale.
    """
    own = not getattr(layer, "scale_qk", True) or any(getattr(layer, f"norm_{name}", None) for name in "qk")
    if own or type(processor).__name__ not in NATIVE_PROCESSORS:
        return None
    from diffusers.models import attention_processor as processors

    name = type(processor).__name__
    same = type(processor) is getattr(processors, name, None)
    return getattr(processors, NATIVE_PROCESSORS[name])() if same else None


def _replaced(owner: object, name: str, value: object) -> Callable[[], None]:
    """Replace an attribute of an object, and return the function that restores it."""
    before = vars(owner).get(name, _OF_CLASS)
    setattr(owner, name, value)
    return partial(delattr, owner, name) if before is _OF_CLASS else partial(setattr, owner, name, before)
