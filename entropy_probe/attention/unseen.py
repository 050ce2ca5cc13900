"""Name the attention that a model computed without a visible call, its cause, and the fix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from entropy_probe.attention.denoiser import denoiser_name
from entropy_probe.attention.observer import Observer

_SDPA = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Unseen:
    """Attention layers that ran without a visible call.

    Attributes:
        layers: their names.
        total: number of all attention layers that ran.
        names: the names for a message: the first four, and how many more.
        remedy: the cause, if it is known, and the fix; full sentences without the last full stop.
    """

    layers: list[str]
    total: int
    names: str
    remedy: str


def find_unseen(
    denoiser: nn.Module, observer: Observer, requested: Callable[[str], bool] = lambda layer: True
) -> Unseen:
    """Return the attention layers of a denoiser that ran without a call that the observer saw.

    These are attention layers by class, and any modules that computed attention by hand in the first pass of a size.

    Args:
        denoiser: the denoiser.
        observer: an observer of it.
        requested: whether a layer counts.

    >>> import torch
    >>> from entropy_probe.attention.observing import observe, stop_observing
    >>> model = nn.MultiheadAttention(4, 2)
    >>> observer = observe(model, lambda call: None)
    >>> output = model(*[torch.zeros(3, 1, 4)] * 3)
    >>> find_unseen(model, observer).layers, find_unseen(model, observer).names
    ([''], 'MultiheadAttention')
    >>> stop_observing(observer)
    """
    ran = observer.ran & {*observer.layers, *observer.by_hand}
    silent = {name for name in (ran - observer.seen) | (ran & observer.by_hand) if requested(name)}
    layers = [*filter(silent.__contains__, observer.layers), *sorted(silent - set(observer.layers))]
    return Unseen(
        layers=layers,
        total=len(ran | observer.seen),
        names=listed([name or denoiser_name(denoiser) for name in layers]),
        remedy=_replaced(observer.replacement) if observer.replacement else ". ".join(_remedies(denoiser, layers)),
    )


def listed(layers: Sequence[str]) -> str:
    """Return the first four names, and the number of the others.

    >>> listed(["a", "", "c", "d", "e", "f"])
    'a, the model itself, c, d and 2 more'
    """
    names = [name or "the model itself" for name in layers]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _remedies(denoiser: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return one fix, of one sentence or more, for each kind of layer."""
    found: dict[str, None] = {}
    for name in layers:
        try:
            module = denoiser.get_submodule(name)
        except AttributeError:  # it was removed from the model in the meantime
            continue
        if isinstance(module, nn.MultiheadAttention):
            remedy = (
                "torch's own nn.MultiheadAttention hides its call, for any value of need_weights. Project queries, "
                f"keys and values in your own module, and pass them to torch.nn.functional.{_SDPA}"
            )
        elif hasattr(module, "processor"):  # a class of diffusers
            remedy = (
                "Choose the native attention backend (`pipe.unet.set_attn_processor(AttnProcessor2_0())`, which also "
                "ends attention slicing, or `set_attention_backend('native')` on a transformer); "
                "ep.capture(attention_backend='native') does this for its own time. Linear attention has no softmax "
                "and no entropy"
            )
        elif type(module).__module__.startswith("transformers"):
            configs = (getattr(one, "config", None) for one in (module, denoiser))
            chosen = next((config._attn_implementation for config in configs if config is not None), None)
            remedy = f'Load the model with attn_implementation="sdpa" instead of {chosen!r}'
        else:
            remedy = f"Compute the attention with torch.nn.functional.{_SDPA}(query, key, value)"
        found[remedy] = None
    return list(found)


def _replaced(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None) or type(function).__module__
    return (
        f"{module}.{name} replaces torch.nn.functional.{_SDPA}, and does not call torch's own function for these "
        "layers: restore torch's function"
    )
