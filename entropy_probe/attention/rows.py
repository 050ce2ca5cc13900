"""Which rows of an attention call are measured."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_probe.attention.interception import AttentionCall
from entropy_probe.statistics import stratified_rows

Rows = int | Literal["all", "auto"]
"""Attention rows to measure in a call."""

EXACT_ROWS = 1024
"""Up to so many tokens `auto` measures all rows, which costs little beside the rest of a model."""

FIRST_ROWS = 256
"""Rows that `auto` draws at a layer's first call to learn how many it needs; the call is then measured on others."""

FEWEST_ROWS = 128
"""Fewer would not tell their own standard error well."""

TOLERANCE = 0.01
"""Standard error, in nats, that `auto` allows in a layer's mean entropy over rows, heads and steps of a sampling."""


def row_count(rows: Rows, tokens: int, needed: int) -> int:
    """How many rows to measure of so many: an even number, or all.

    `auto` measures all rather than more than half of them, some of which would come twice.
    """
    if rows == "all" or (rows == "auto" and tokens <= EXACT_ROWS):
        return tokens
    wanted, most = (needed, tokens // 2) if rows == "auto" else (rows, tokens - 1)
    wanted += wanted % 2
    return wanted if wanted <= most else tokens


def worst_error(error: Float[Tensor, "batch heads"]) -> Float[Tensor, ""]:
    """Standard error of a call's mean entropy, nats, of the item that has the largest.

    Heads share their rows, so their errors may well be one; steps do not.
    """
    return error.mean(-1).max()


def rows_needed(error: float, drawn: int, steps: int) -> int:
    """Rows that a layer needs at each of so many steps, by the standard error of those just drawn, nats.

    The aim is half the tolerance: the spread may grow from a step to the next, and a standard error is itself an
    estimate.
    """
    return max(FEWEST_ROWS, math.ceil(drawn * error**2 / ((TOLERANCE / 2) ** 2 * steps)))


def choose_rows(
    call: AttentionCall, count: int, generator: torch.Generator
) -> Int[Tensor, "batch rows"] | Int[Tensor, " rows"] | None:
    """So many rows of image queries, for each batch item its own; None for all there are, without others among them."""
    image = call.image_queries
    tokens = image.stop - image.start
    device = call.query.device
    if count < tokens:
        drawn = stratified_rows(tokens, count, generator, (call.query.shape[0],))
        return drawn.add_(image.start).to(device)
    return None if tokens == call.query.shape[2] else torch.arange(image.start, image.stop, device=device)
