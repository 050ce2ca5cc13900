"""What a sweep will take, from one cell of each size that is sampled and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from entropy_probe.errors import IncompleteError, InputError
from entropy_probe.models import Size, training_size
from entropy_probe.runs.grid import Grid, batches, share
from entropy_probe.runs.sweeping import Sweep, extend, sweep


@dataclass(frozen=True)
class Forecast:
    """What the cells of one size take.

    Attributes:
        size: (height, width) in pixels.
        cells: of this size in the grid.
        batches: that they are sampled in.
        seconds: that one cell took by itself; in a batch it takes no longer.
        bytes: of its table and image.
    """

    size: Size
    cells: int
    batches: int
    seconds: float
    bytes: int


def forecast(
    pipeline: Any, *, prompts: Sequence[str], sizes: Sequence[Size], seeds: Sequence[int] = (0,), batch: int = 8,
    shard: tuple[int, int] = (1, 1), **settings: Any,
) -> list[Forecast]:  # fmt: skip
    """What `sweep` with the same arguments will take in an empty folder, small sizes first; nothing is kept.

    Args:
        pipeline: a diffusers text-to-image pipeline.
        prompts: texts.
        sizes: (height, width) in pixels.
        seeds: one image each, for every prompt and size.
        batch: see `sweep`.
        shard: see `sweep`.
        settings: as `sweep` takes them (steps, guidance_scale, rows, ...).

    Raises:
        InputError: see `sweep`; and if the memory does not suffice for a cell of some size.
    """
    grid = Grid.of(prompts, sizes, seeds, ["original"])
    cells, trained = list(grid.cells()), training_size(pipeline)
    own_batches = share(list(batches(cells, batch, trained)), *shard)
    ordered = list(dict.fromkeys(cell.size for cell in cells))
    # The first sampling of a process is slower than those that follow, and only it takes the fingerprint of the model.
    first = {"prompts": prompts[:1], "sizes": ordered[:1], "seeds": [0], "progress": False, **settings}
    begun = _or_refused(lambda: sweep(pipeline, **first))
    found = []
    for size in ordered:
        own = [part for part in own_batches if part[0].size == size]
        another = partial(extend, begun, laws=["original"], sizes=[size], seeds=[1], progress=False)
        began = time.perf_counter()
        made = _or_refused(another)
        seconds = time.perf_counter() - began
        cell = next(made.grid.cells())
        space = sum(path.stat().st_size for path in (made.run.cell_path(cell), made.run.image_path(cell)))
        found.append(Forecast(size, sum(map(len, own)), len(own), seconds, space))
    return found


def _or_refused(sample: Callable[[], Sweep]) -> Sweep:
    try:
        return sample()
    except IncompleteError as error:
        raise InputError(f"{error.reason}: leave that size out, or go where there is more memory") from error
