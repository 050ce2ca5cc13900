"""Choose the attention rows of a call that are measured."""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_probe.attention.call import AttentionCall
from entropy_probe.statistics import stratified_rows

Rows = int | Literal["all", "auto"]
"""Attention rows to measure per call."""

RowIndex = Int[Tensor, "batch rows"] | Int[Tensor, " rows"] | None
"""Rows of each batch item, the same rows of all items, or all rows."""

EXACT_ROWS = 1024
"""`auto` measures all rows up to this number of tokens; this costs little compared with the rest of a model."""

FIRST_ROWS = 256
"""Rows that `auto` samples at a layer's first call, to estimate its budget. The call is measured on other rows."""

FEWEST_ROWS = 128
"""Fewer rows would not estimate their own standard error well."""

TOLERANCE = 0.01
"""Standard error, in nats, that `auto` allows in the mean entropy of a layer over rows, heads and steps of a run."""


def row_count(rows: Rows, tokens: int, needed: int) -> int:
    """Return the number of rows to measure: an even number, or all.

    `auto` measures all rows if more than half of them are needed, because some would be sampled twice.

    >>> row_count(63, 4096, needed=0), row_count("auto", 1024, needed=256), row_count("auto", 4096, needed=256)
    (64, 1024, 256)
    """
    if rows == "all" or (rows == "auto" and tokens <= EXACT_ROWS):
        return tokens
    wanted, most = (needed, tokens // 2) if rows == "auto" else (rows, tokens - 1)
    wanted += wanted % 2
    return wanted if wanted <= most else tokens


def rows_needed(error: float, sampled: int, steps: int) -> int:
    """Return the rows that a layer needs at each step.

    The target is half the tolerance: the spread may grow from one step to the next, and a standard error is itself an
    estimate.

    Args:
        error: standard error of the last sampled rows, nats.
        sampled: their number.
        steps: number of sampling steps.
    """
    return max(FEWEST_ROWS, math.ceil(sampled * error**2 / ((TOLERANCE / 2) ** 2 * steps)))


class _Sampled(NamedTuple):
    layer: tuple[object, ...]
    error: Float[Tensor, "batch heads"]
    rows: int
    steps: int


class RowBudget:
    """The number of rows that each layer needs, learned from the standard errors of the rows sampled before.

    Args:
        rows: see `Rows`.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._needed: dict[tuple[object, ...], int] = {}
        self._sampled: list[_Sampled] = []

    def knows(self, layer: tuple[object, ...]) -> bool:
        """Whether the budget of a layer has been learned."""
        return layer in self._needed

    def count(self, layer: tuple[object, ...], tokens: int) -> int:
        """Return the number of rows to measure in a call of a layer."""
        return row_count(self.rows, tokens, self._needed.get(layer, FIRST_ROWS))

    def note(
        self, layer: tuple[object, ...], error: Float[Tensor, "batch heads"], rows: int, tokens: int, steps: int
    ) -> None:
        """Note the standard errors of sampled rows, nats. They stay on their device until `learn`."""
        if self.rows == "auto" and rows < tokens:
            self._sampled.append(_Sampled(layer, error, rows, steps))

    def learn(self) -> None:
        """Update the budget of every layer noted since the last time. This synchronises once per device.

        Heads share their rows, so a call's errors are averaged over heads; the item with the largest error counts.
        """
        errors = (one.error.mean(-1).max() for one in self._sampled)
        by_device = itertools.groupby(errors, key=lambda error: error.device)
        worst = [error for _, group in by_device for error in torch.stack(list(group)).tolist()]
        for one, error in zip(self._sampled, worst, strict=True):
            self._needed[one.layer] = rows_needed(error, one.rows, one.steps)
        self._sampled.clear()


def choose_rows(call: AttentionCall, count: int, generator: torch.Generator) -> RowIndex:
    """Sample rows of the image queries, separately for each batch item; None if all queries are to be measured."""
    image = call.image_queries
    tokens = image.stop - image.start
    device = call.query.device
    if count < tokens:
        sampled = stratified_rows(tokens, count, generator, (call.query.shape[0],))
        return sampled.add_(image.start).to(device)
    return None if tokens == call.query.shape[2] else torch.arange(image.start, image.stop, device=device)
