"""What a sweep will take, from one cell of each size that is sampled and measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from entropy_probe.laws import resolve
from entropy_probe.pipelines import Size, training_size
from entropy_probe.sweep.grid import Grid, batches
from entropy_probe.sweep.run import sweep


@dataclass(frozen=True)
class Forecast:
    """What the cells of one size take.

    Attributes:
        size: (height, width) in pixels.
        cells: of this size in the grid.
        batches: that they are sampled in.
        seconds: that one cell took by itself; in a batch it takes no longer.
        bytes: of its table and picture.
    """

    size: Size
    cells: int
    batches: int
    seconds: float
    bytes: int


def forecast(
    pipeline: Any, *, prompts: Sequence[str], sizes: Sequence[Size], seeds: Sequence[int] = (0,), batch: int = 8,
    **settings: Any,
) -> list[Forecast]:  # fmt: skip
    """What `sweep` with the same arguments will take, small sizes first; the cells that are measured are not kept.

    Args:
        pipeline: a diffusers text-to-image pipeline.
        prompts: texts.
        sizes: (height, width) in pixels.
        seeds: one image each, for every prompt and size.
        batch: see `sweep`.
        settings: as `sweep` takes them (steps, guidance_scale, rows, ...).

    Raises:
        InputError: see `sweep`.
    """
    grid = Grid(tuple(prompts), tuple(sizes), tuple(seeds), (resolve("original"),))
    cells, trained = list(grid.cells()), training_size(pipeline)
    ordered = list(dict.fromkeys(cell.size for cell in cells))
    one: dict[str, Any] = {"prompts": prompts[:1], "seeds": seeds[:1], "progress": False, **settings}
    sweep(pipeline, sizes=ordered[:1], **one)  # the first sampling of a process is slower than those that follow
    found = []
    for size in ordered:
        own = [cell for cell in cells if cell.size == size]
        began = time.perf_counter()
        made = sweep(pipeline, sizes=[size], **one)
        seconds = time.perf_counter() - began
        cell = next(made.grid.cells())
        space = sum(path.stat().st_size for path in (made.run.cell_path(cell), made.run.image_path(cell)))
        found.append(Forecast(size, len(own), len(list(batches(own, batch, trained))), seconds, space))
    return found
