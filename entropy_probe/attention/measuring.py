"""Measure one attention call: the statistics of its rows, reduced to one value per batch item and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from entropy_probe.attention.call import AttentionCall
from entropy_probe.attention.grid import TokenGrid
from entropy_probe.attention.roles import Axes, Kind
from entropy_probe.attention.rows import RowIndex
from entropy_probe.statistics import PartMeans, RowStatistics, curve, flash, parts, standard_error

PARTS = tuple(part.name for part in fields(PartMeans))
STATISTICS = ("entropy", "entropy_std", "entropy_se", "logit_variance", "attention_distance", *PARTS)
"""Quantities measured for each batch item and head of a call."""


@dataclass(frozen=True)
class CallStatistics:
    """The statistics of one attention call, under one scale factor.

    Attributes:
        forward: number of the forward pass.
        layer: name of the attention layer.
        kind: which tokens attend to which.
        axes: what one attention spans.
        grid: layout of the image tokens among the queries; None if there are none, or if it is unknown.
        tokens: N.
        training_tokens: T; None if it is unknown.
        query_tokens: number of queries.
        key_tokens: number of keys.
        scale: scale of the logits of the call as the model makes it.
        scale_factor: g under which the call was measured; 1 for the call as the model makes it.
        rows: number of rows that the means are taken over.
        first_item: see `AttentionCall`.
        items_per_sample: see `AttentionCall`.
        batch: number of items.
        heads: number of heads.
        storage: one row per name in `STATISTICS`, NaN if it is not defined, and a last row that is 1 if the item has a
            query that may attend to any key, else 0. One column per item and head. It stays on the model's device
            until the forward pass is over; then all calls of the pass share one storage on the host.
        start: first column of this call.
        entropy_rows: entropy of every row, nats, if rows are kept.
    """

    forward: int
    layer: str
    kind: Kind
    axes: Axes
    grid: TokenGrid | None
    tokens: int
    training_tokens: int | None
    query_tokens: int
    key_tokens: int
    scale: float
    scale_factor: float
    rows: int
    first_item: int | None
    items_per_sample: int | Fraction
    batch: int
    heads: int
    storage: Float[Tensor, "statistics cells"]
    start: int
    entropy_rows: Float[Tensor, "batch heads tokens"] | None

    def __getattr__(self, name: str) -> Float[Tensor, "batch heads"]:
        """Return one of `STATISTICS` by its name."""
        if name in STATISTICS:
            row = self.storage[STATISTICS.index(name), self.start : self.start + self.batch * self.heads]
            return row.reshape(self.batch, self.heads)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def unmeasurable(call: AttentionCall) -> str | None:
    """Return why the rows of a call cannot be measured; None if they can."""
    for tensor in (call.query, call.key):
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return "inside torch.func transforms such as vmap and grad, tensors are placeholders"
        if tensor.is_meta or "FakeTensor" in type(tensor).__name__:
            return "meta and fake tensors, as torch.export uses them, hold no values"
    if call.mask is not None and type(call.mask) not in (Tensor, torch.nn.Parameter):
        return f"masks of type {type(call.mask).__name__} are not supported"
    return None


def as_computed(call: AttentionCall) -> AttentionCall:
    """Return the call with its tensors as autocast casts them: norms return float32, which the kernel does not see."""
    if not torch.is_autocast_enabled(call.query.device.type):
        return call
    mask = None if call.mask is None else _cast(call.mask)
    return replace(call, query=_cast(call.query), key=_cast(call.key), mask=mask)


def undisturbed(device: str, work: Callable[[], None]) -> None:
    """Run `work` without gradients and without autocast, which would round the products of a measurement.

    Args:
        device: type of the device, such as `cuda`.
        work: the function to run.

    >>> undisturbed("cpu", lambda: print(torch.is_grad_enabled()))
    False
    """
    # Without torch's contexts: an interruption at their end would leave gradients or autocast disabled.
    gradients, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled(device)
    try:
        torch._C._set_grad_enabled(False)
        if autocast:
            torch.set_autocast_enabled(device, False)
        work()
    finally:
        try:
            torch._C._set_grad_enabled(gradients)
        finally:
            if autocast:
                torch.set_autocast_enabled(device, True)


def measure(call: AttentionCall, rows: RowIndex, *, distance: bool, keep_rows: bool = False) -> CallStatistics:
    """Measure a call as the model makes it.

    Args:
        call: the call.
        rows: the rows to measure, see `choose_rows`.
        distance: measure the attention distance if the tokens have positions.
        keep_rows: keep the entropy of every row.
    """
    if rows is None or rows.ndim == 1:
        return _reduced(call, 1.0, [_statistics(call, rows, distance)], False, keep_rows)
    items = [_statistics(_item(call, number), own, distance) for number, own in enumerate(rows)]
    return _reduced(call, 1.0, items, True, keep_rows)


def measure_curve(call: AttentionCall, scale_factors: tuple[float, ...], rows: RowIndex) -> Iterator[CallStatistics]:
    """Measure a call under each scale factor, from the same queries and keys: the curve H(g)."""
    if rows is None or rows.ndim == 1:
        for factor, statistics in zip(scale_factors, _scaled(call, scale_factors, rows), strict=True):
            yield _reduced(call, factor, [(statistics, None)], False, False)
        return
    items = [_scaled(_item(call, number), scale_factors, own) for number, own in enumerate(rows)]
    for factor, *found in zip(scale_factors, *items, strict=True):
        yield _reduced(call, factor, [(statistics, None) for statistics in found], True, False)


def _cast(tensor: Tensor) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _item(call: AttentionCall, number: int) -> AttentionCall:
    """Return the call of one batch item."""
    own, mask = slice(number, number + 1), call.mask
    if mask is not None and mask.ndim == 4 and mask.shape[0] > 1:
        mask = mask[own]
    return replace(call, query=call.query[own], key=call.key[own], mask=mask)


def _statistics(
    call: AttentionCall, index: Int[Tensor, " rows"] | None, distance: bool
) -> tuple[RowStatistics, PartMeans | None]:
    positions = None
    if distance and (centres := call.positions) is not None:
        positions = (centres if index is None else centres[index - call.image_queries.start], centres)
    query, mask, is_causal = _of_rows(call, index)
    if call.image_keys is None:
        return flash(query, call.key, mask, is_causal, call.scale, call.enable_gqa, positions), None
    split = parts(query, call.key, call.image_keys, mask, call.scale, call.enable_gqa, positions)
    return split.whole, split.means()


def _scaled(
    call: AttentionCall, scale_factors: tuple[float, ...], index: Int[Tensor, " rows"] | None
) -> list[RowStatistics]:
    query, mask, is_causal = _of_rows(call, index)
    return curve(query, call.key, scale_factors, mask, is_causal, call.scale, call.enable_gqa)


def _of_rows(
    call: AttentionCall, index: Int[Tensor, " rows"] | None
) -> tuple[Float[Tensor, "batch heads rows width"], Shaped[Tensor, "*#mask"] | None, bool]:
    """Return the queries of some rows, their mask, and whether it is causal."""
    query, mask, is_causal = call.query, call.mask, call.is_causal
    if is_causal and (index is not None or call.image_keys is not None):
        rows = torch.arange(query.shape[2], device=query.device) if index is None else index
        mask, is_causal = torch.arange(call.key.shape[2], device=query.device) <= rows[:, None], False
    elif index is not None and mask is not None and mask.ndim > 1 and mask.shape[-2] > 1:
        mask = mask.index_select(-2, index)
    return query if index is None else query.index_select(2, index), mask, is_causal


def _reduced(
    call: AttentionCall,
    scale_factor: float,
    items: Sequence[tuple[RowStatistics, PartMeans | None]],
    sampled: bool,
    keep_rows: bool,
) -> CallStatistics:
    """Reduce the statistics of a call, measured at once or item by item, to one value per item and head."""
    rows = [statistics for statistics, _ in items]
    values = _values(call, items, sampled)
    return CallStatistics(
        forward=call.forward.number,
        layer=call.layer,
        kind=call.kind,
        axes=call.axes,
        grid=call.grid,
        tokens=call.tokens,
        training_tokens=call.training_tokens,
        query_tokens=call.query.shape[2],
        key_tokens=call.key.shape[2],
        scale=call.scale,
        scale_factor=scale_factor,
        rows=rows[0].entropy.shape[-1],
        first_item=call.first_item,
        items_per_sample=call.items_per_sample,
        batch=values.shape[1],
        heads=values.shape[2],
        storage=values.flatten(1),
        start=0,
        entropy_rows=rows[0].entropy.to(torch.float32, copy=True) if keep_rows else None,  # a copy, not a view
    )


def _values(
    call: AttentionCall, items: Sequence[tuple[RowStatistics, PartMeans | None]], sampled: bool
) -> Float[Tensor, "statistics batch heads"]:
    """Return the rows of `CallStatistics.storage`, float32."""
    means = [statistics.means() for statistics, _ in items]
    entropy = _together([one.entropy for one in means])
    columns: list[Any] = [
        entropy,
        _together([one.entropy_std for one in means]),
        _error([statistics for statistics, _ in items]) if sampled else torch.zeros_like(entropy),
        _together([one.logit_variance for one in means]),
        None if means[0].attention_distance is None else _together([one.attention_distance for one in means]),
    ]
    splits = [split for _, split in items if split is not None]
    columns += [_together([getattr(split, name) for split in splits]) if splits else None for name in PARTS]
    has_rows = None if call.mask is None else torch.cat([statistics.counted.any(-1) for statistics, _ in items])
    columns.append(torch.ones_like(entropy) if has_rows is None else has_rows)
    missing = torch.full_like(entropy, torch.nan)
    return torch.stack([(missing if column is None else column).float() for column in columns])


def _together(items: list[Any]) -> Tensor:
    """Return the values of one batch item after the other."""
    joined: Tensor = items[0] if len(items) == 1 else torch.cat(items)
    return joined


def _error(items: Sequence[RowStatistics]) -> Float[Tensor, "batch heads"]:
    """Return the standard error of the mean entropy of every item."""
    return standard_error(_together([one.entropy for one in items]), _together([one.counted for one in items]))
