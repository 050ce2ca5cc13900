"""Estimate the time and disk space of a sweep from one measured cell per size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from entropy_probe.errors import IncompleteError, InputError
from entropy_probe.models import Size, training_size
from entropy_probe.runs.grid import Grid, batches, select_shard
from entropy_probe.runs.sweeping import Sweep, extend, grid_prompts, sweep


@dataclass(frozen=True)
class Forecast:
    """Estimated time and disk space of the cells of one size.

    Attributes:
        size: (height, width) in pixels.
        cells: number of cells of this size.
        batches: number of batches.
        seconds: time for one cell, sampled alone. In a batch, it is at most this.
        bytes: disk space for the table and the image of one cell.
    """

    size: Size
    cells: int
    batches: int
    seconds: float
    bytes: int


def forecast(
    pipeline: Any, *, prompts: Sequence[str] | None = None, sizes: Sequence[Size], seeds: Sequence[int] = (0,),
    batch: int = 8, shard: tuple[int, int] = (1, 1), **settings: Any,
) -> list[Forecast]:  # fmt: skip
    """Estimate time and disk space of a `sweep` with the same arguments, small sizes first. Nothing is kept.

    Args:
        pipeline: a diffusers pipeline.
        prompts: texts; None for a pipeline without prompts.
        sizes: (height, width) in pixels.
        seeds: seeds of the initial noise.
        batch: see `sweep`.
        shard: see `sweep`.
        settings: further arguments of `sweep` (steps, guidance_scale, rows, ...).

    Raises:
        InputError: see `sweep`. Also if the memory is too small for a cell.

    >>> import entropy_probe as ep
    >>> estimates = forecast(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], seeds=range(9), steps=1)
    >>> [(estimate.size, estimate.cells) for estimate in estimates]
    [((32, 32), 9)]
    """
    prompts = grid_prompts(pipeline, prompts)
    grid = Grid.build(prompts, sizes, seeds, ["original"])
    cells, trained = list(grid.cells()), training_size(pipeline)
    parts = select_shard(list(batches(cells, batch, trained)), *shard)
    sizes_in_order = list(dict.fromkeys(cell.size for cell in cells))
    # Not timed: the first sampling run of a process is slower, and the fingerprint is computed once per sweep.
    first = {"prompts": prompts[:1], "sizes": sizes_in_order[:1], "seeds": [0], "progress": False, **settings}
    base = _require_memory(lambda: sweep(pipeline, **first))
    forecasts = []
    for size in sizes_in_order:
        parts_of_size = [part for part in parts if part[0].size == size]
        sample_one = partial(extend, base, laws=["original"], sizes=[size], seeds=[1], progress=False)
        start = time.perf_counter()
        one = _require_memory(sample_one)
        seconds = time.perf_counter() - start
        cell = next(one.grid.cells())
        space = sum(path.stat().st_size for path in (one.run.cell_path(cell), one.run.image_path(cell)))
        forecasts.append(Forecast(size, sum(map(len, parts_of_size)), len(parts_of_size), seconds, space))
    return forecasts


def _require_memory(sample: Callable[[], Sweep]) -> Sweep:
    try:
        return sample()
    except IncompleteError as error:
        raise InputError(f"{error.reason}. Remove this size, or use a machine with more memory") from error
