"""Compare the batch items of tensors by their content, on the device and without synchronising."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

PROJECTIONS = 6
"""Projections of an item on fixed waves. Items that differ agree in all of them only by a rare chance."""

SAME = 1e-5
"""Relative difference of equal items: their sums may be rounded differently."""

CAST = 0.01
"""Relative difference of items that were cast to half precision on the way. Different texts differ by more."""

Rows = Float[Tensor, "_ values"]
"""Fingerprints of items: the projections of their tokens of unit length, two norms, and the number of elements."""


def fingerprint(value: Any) -> Rows | None:
    """Return the fingerprint of each item of a tensor, or of each tensor of a list; None for anything else.

    >>> texts = torch.randn(3, 5, 8)
    >>> agree(fingerprint(texts).numpy(), fingerprint(texts.bfloat16()).numpy(), CAST).tolist()
    [True, True, True]
    """
    if isinstance(value, (list, tuple)) and value and all(_is_plain(one) for one in value):
        return torch.cat([_of_items(one[None]) for one in value])
    return _of_items(value) if _is_plain(value) and value.ndim > 0 else None


def agree(
    first: Float[np.ndarray, "*#items values"], second: Float[np.ndarray, "*#items values"], tolerance: float
) -> Bool[np.ndarray, " *items"]:
    """Return whether items have the same content, up to a relative difference.

    Args:
        first: fingerprints.
        second: fingerprints; both are broadcast.
        tolerance: `SAME` or `CAST`.
    """
    largest = np.maximum(np.abs(first), np.abs(second))
    limit = np.where(np.arange(first.shape[-1]) < PROJECTIONS, largest[..., -3:-2], largest)
    close = (np.abs(first - second) <= tolerance * limit).all(-1)
    return np.asarray(close & (first[..., -1] == second[..., -1]))


class FingerprintCache:
    """Remembers the fingerprints of tensors that return unchanged, as the texts do at each step.

    It keeps these tensors alive, so that no other tensor can have their address meanwhile.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, Rows]] = {}

    def fingerprint(self, value: Any) -> Rows | None:
        """Return `fingerprint(value)`."""
        if not _is_plain(value) or value.is_inference():  # inference tensors do not count their changes
            return fingerprint(value)
        known = self._known.get(id(value))
        if known is not None and known[:2] == (value, value._version):
            return known[2]
        found = fingerprint(value)
        if found is not None:
            if len(self._known) == 64:
                del self._known[next(iter(self._known))]
            self._known[id(value)] = (value, value._version, found)
        return found


def on_host(fingerprints: Sequence[Rows]) -> list[Float[np.ndarray, "_ values"]]:
    """Return fingerprints as arrays, with one copy per tensor, however often it is among them."""
    copied = {id(one): one for one in fingerprints}
    arrays = {key: one.cpu().numpy() for key, one in copied.items()}
    return [arrays[id(one)] for one in fingerprints]


def _is_plain(value: Any) -> bool:
    """Whether a tensor holds values that can be read: no nested, meta or fake tensor, no placeholder of torch.func."""
    return (
        type(value) in (Tensor, torch.nn.Parameter)
        and not value.is_nested
        and not value.is_meta
        and value.layout == torch.strided
        and value.numel() > 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def _of_items(items: Tensor) -> Rows:
    values = items.detach().flatten(1) if items.ndim > 1 else items.detach()[:, None]
    if not values.is_floating_point():  # numbers of classes or words, of which neighbours must differ
        waves = torch.tensor([2, 3, 5, 7, 11, 13], device=values.device).sqrt()
        values = torch.sin(values.double()[..., None] * waves).flatten(1)
    width = items.shape[-1] if items.ndim > 2 and items.is_floating_point() else values.shape[1]
    rows = values.float().unflatten(1, (-1, width))
    lengths = rows.norm(dim=-1, keepdim=True)
    units = rows / lengths.clamp_min(torch.finfo(torch.float32).tiny)  # else one large token would hide the others
    across, down = _waves(width, rows.device), _waves(rows.shape[1], rows.device)
    columns = [((units * across[wave]).sum(-1) * down[-1 - wave]).sum(-1) for wave in range(PROJECTIONS)]
    norms = [units.square().sum((1, 2)).sqrt(), lengths.square().sum((1, 2)).sqrt()]
    return torch.stack([*columns, *norms, torch.full_like(norms[0], values.shape[1])], -1)


@functools.lru_cache(maxsize=64)
def _waves(length: int, device: torch.device) -> Float[Tensor, "projections length"]:
    """Return fixed waves. No product of matrices applies them, because autocast would round it."""
    place = torch.arange(length, device=device)
    return torch.stack([torch.cos((1.1 + 0.83 * wave) * place + wave) for wave in range(PROJECTIONS)])
