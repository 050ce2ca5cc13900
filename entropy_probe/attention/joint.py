"""Locate the image tokens among the keys of a joint attention, from what the model concatenates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

CONCATENATIONS = frozenset((torch.cat, torch.concat, torch.concatenate))
"""The functions by which models join image and text tokens."""

CONTEXTS = ("encoder_hidden_states", "context", "memory")
"""Names that attention layers give the tokens that they receive in addition to their own."""


class Join(NamedTuple):
    """Lengths of the tensors that were concatenated, and the index of the image if equal lengths leave that open."""

    lengths: tuple[int, ...]
    image: int | None


class ImageSource:
    """Recognises the image among concatenated tensors: the layer's own input, or one linear projection of it.

    Args:
        image: the layer's own input; None if it need not be recognised.
    """

    def __init__(self, image: Tensor | None) -> None:
        self.image = image
        self._projections: list[Tensor] = []  # kept alive: another tensor must not reuse their storage

    def projected(self, given: Any, result: Tensor) -> None:
        """Note the result of a linear projection."""
        if self.image is not None and given is self.image:
            self._projections.append(result)

    def index(self, tensors: Sequence[Tensor]) -> int | None:
        """Return the index of the image among tensors; None if none or several come from it."""
        if self.image is None:
            return None
        found = [number for number, tensor in enumerate(tensors) if self._is_image(tensor)]
        return found[0] if len(found) == 1 else None

    def _is_image(self, part: Tensor) -> bool:
        if self.image is not None and part.data_ptr() == self.image.data_ptr():
            return True
        storage = part.untyped_storage().data_ptr()
        return any(storage == projection.untyped_storage().data_ptr() for projection in self._projections)


def note_join(joins: dict[int, Join], source: ImageSource, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Note a concatenation of tokens under its total length.

    Args:
        joins: the concatenations of this forward pass, by total length; changed in place.
        source: recognises the image if several parts have the same length.
        args: positional arguments of `torch.cat`.
        kwargs: its keyword arguments.
    """
    named = {**dict(zip(("tensors", "dim"), args, strict=False)), **kwargs}
    tensors: Sequence[Tensor] = named["tensors"]
    along = named.get("axis", named.get("dim", 0))
    first = tensors[0]
    if along in (-1, first.ndim - 1):  # features, not tokens
        return
    lengths = tuple(0 if tensor.shape == (0,) else tensor.shape[along] for tensor in tensors)
    image = source.index(tensors) if len(set(lengths)) < len(lengths) else None
    known = joins.get(sum(lengths))
    if image is not None or known is None or known.lengths != lengths:
        joins[sum(lengths)] = Join(lengths, image)


def image_start(lengths: Sequence[int], tokens: int, others: int = 0, image: int | None = None) -> int | None:
    """Return the index of the first image token among the keys of a joint attention.

    The image is the part with the length of its tokens, with or without those of other images. Otherwise it is the only
    part that is long enough. It starts where that part starts, because images are padded at their end.

    Args:
        lengths: lengths of the tensors that were concatenated into the keys.
        tokens: number of image tokens.
        others: number of tokens of other images next to them.
        image: index of the image part, if it is known.

    Returns:
        The index, counted from the end (negative) unless the image comes first; None if the lengths leave it open.

    >>> image_start((77, 64), tokens=64)
    -64
    >>> image_start((64, 64), tokens=64) is None
    True
    """
    for length in (tokens + others, tokens):
        fitting = [index for index, part in enumerate(lengths) if part == length]
        if image in fitting:
            fitting = [image]
        if fitting:
            break
    else:
        fitting = [index for index, part in enumerate(lengths) if part > tokens + others]
    if len(fitting) != 1 or len(lengths) < 2:
        return None
    return -sum(lengths[fitting[0] :]) if fitting[0] else 0


def start_within(joins: Mapping[int, Join], keys: int, tokens: int, others: int) -> int | None:
    """Return the index of the first image token among keys, through concatenations of concatenations.

    A model may put the history of a video, or registers, in front of the image, and text next to both.

    Args:
        joins: the known concatenations, by total length.
        keys: number of keys.
        tokens: number of image tokens.
        others: number of tokens of other images next to them.

    Returns:
        As `image_start`.

    >>> start_within({20: Join((4, 16), None), 27: Join((20, 7), None)}, keys=27, tokens=16, others=0)
    -23
    """
    if keys not in joins:
        return None
    lengths, image = joins[keys]
    start = image_start(lengths, tokens, others, image)
    if start is None:  # a history may be longer than the image, and a text longer than both
        whole = [
            n for n, part in enumerate(lengths) if start_within(_inner(joins, keys), part, tokens, others) is not None
        ]
        if len(whole) != 1:
            return None
        start = -sum(lengths[whole[0] :])
    part = next(length for number, length in enumerate(lengths) if start in (0, -sum(lengths[number:])))
    first = start if start >= 0 else keys + start
    if tokens + others < part < keys and part in joins:
        inner = start_within(joins, part, tokens, others)
        if inner is None:
            return None
        start = first + (inner if inner >= 0 else part + inner) - keys
    return start


def _inner(joins: Mapping[int, Join], keys: int) -> dict[int, Join]:
    """Return the concatenations of fewer tokens."""
    return {total: join for total, join in joins.items() if total < keys}


def parts_of(joins: Mapping[int, Join], tokens: int, whole: int = 0) -> tuple[int, ...]:
    """Return the lengths of the parts that a number of tokens was concatenated from; empty if unknown.

    A part of length `whole` is not divided: other tensors of that length may be concatenations.

    >>> parts_of({20: Join((4, 16), None), 27: Join((20, 7), None)}, 27)
    (4, 16, 7)
    """
    if tokens not in joins:
        return ()
    lengths = joins[tokens].lengths
    return tuple(
        inner for part in lengths for inner in ((whole != part < tokens and parts_of(joins, part, whole)) or (part,))
    )


def context_lengths(args: Sequence[Any], kwargs: Mapping[str, Any]) -> frozenset[int]:
    """Return the numbers of tokens that an attention layer receives in addition to its own.

    A layer may receive several texts, or a text and the tokens of images, as IP-Adapter passes them in a tuple.
    """
    own = own_input(args, kwargs)
    given = [kwargs[name] for name in CONTEXTS if name in kwargs] or list(args[1:2])
    return frozenset(
        length
        for context in _tensors(given)
        if context is not own and context.ndim > 2  # Lumina passes its own input twice
        for length in _lengths(context, own)
    )


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists and tuples."""
    if isinstance(values, Tensor):
        if not values.is_nested:
            yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _lengths(context: Tensor, own: Any) -> tuple[int, ...]:
    """Return the number of tokens of a context; for several images, also the number of all their tokens."""
    if context.ndim == 3:
        return (int(context.shape[1]) - _own_tokens(own, context),)
    return (int(context.shape[-2]), math.prod(context.shape[1:-1]))


def own_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the tokens that an attention layer attends from."""
    return kwargs.get("hidden_states", args[0] if args else None)


def input_with_context(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the tokens that an attention layer attends from, if it also receives a text."""
    own = own_input(args, kwargs)
    return own if isinstance(own, Tensor) and context_lengths(args, kwargs) else None


def _own_tokens(own: Any, context: Tensor) -> int:
    """Return the number of the layer's own tokens at the start of its context. Stable Cascade puts them there."""
    if not isinstance(own, Tensor) or own.ndim not in (3, 4):
        return 0
    tokens = own.flatten(2).mT if own.ndim == 4 else own
    count = tokens.shape[1]
    may = context.shape[1] > count and context.shape[2] == tokens.shape[2]
    return count if may and torch.equal(context[:, 0], tokens[:, 0]) else 0
