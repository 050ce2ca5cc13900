"""Sampling a batch of cells: the one function that every engine calls, wherever its pipeline is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import pandas as pd
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image

from entropy_probe.attention import capture, find_denoiser
from entropy_probe.interruption import held_back
from entropy_probe.laws import Original, ScalingLaw, scaled
from entropy_probe.models import format_size, sample_images
from entropy_probe.runs.cells import COLUMNS
from entropy_probe.runs.directory import Manifest
from entropy_probe.runs.grid import Cell


@dataclass(frozen=True)
class Sampled:
    """A cell that was sampled: its table with `cells.COLUMNS`, its image, and what was sampled together."""

    cell: Cell
    frame: pd.DataFrame
    image: Image.Image
    batch: tuple[Cell, ...]


@dataclass(frozen=True)
class Failed:
    """A cell for which the memory does not suffice even by itself."""

    cell: Cell
    reason: str


def sample_cells(pipeline: Any, cells: list[Cell], law: ScalingLaw, manifest: Manifest) -> Iterator[Sampled | Failed]:
    """Sample cells of one size and law in one batch, or in halves where the memory does not suffice.

    The same cells together give the same records, to the bit on a CPU: what is sampled beside a cell decides the last
    digits.

    Args:
        pipeline: the pipeline.
        cells: of one size and law.
        law: that law.
        manifest: the settings.
    """
    try:
        with _interruptible_between_steps(pipeline):
            made = _together(pipeline, cells, law, manifest)
        yield from made
        return
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
    # Beyond the except clause, whose traceback keeps the tensors of the failed batch alive.
    clear_device_cache(garbage_collection=True)
    if len(cells) == 1:
        yield Failed(cells[0], f"out of memory at {format_size(cells[0].size)}: {reason}")
        return
    for part in (cells[: len(cells) // 2], cells[len(cells) // 2 :]):
        yield from sample_cells(pipeline, part, law, manifest)


def _out_of_memory(error: Exception) -> bool:
    """oneDNN, which convolves on a CPU, says no more than that it could not."""
    if isinstance(error, MemoryError) or "could not create a primitive" in str(error):
        return True
    return bool(should_reduce_batch_size(error))


def _together(pipeline: Any, cells: list[Cell], law: ScalingLaw, manifest: Manifest) -> list[Sampled]:
    size = cells[0].size
    under_law = nullcontext() if isinstance(law, Original) else scaled(pipeline, law)
    # Other cells, other rows: the choice of rows is then part of what varies between the images.
    seed = crc32(cells[0].name.encode())
    with under_law, capture(pipeline, rows=manifest.rows, scale_factors=manifest.scale_factors, seed=seed) as captured:
        images = sample_images(
            pipeline,
            [cell.prompt for cell in cells],
            size,
            [cell.seed for cell in cells],
            steps=manifest.steps,
            guidance_scale=manifest.guidance_scale,
        )
    frame = captured.frame()
    made = []
    for item, (cell, image) in enumerate(zip(cells, images, strict=True)):
        own = frame[frame["sample"] == item].assign(
            prompt=cell.prompt, seed=cell.seed, height=size[0], width=size[1], law=cell.law
        )
        made.append(Sampled(cell, own[[column.name for column in COLUMNS]], image, tuple(cells)))
    return made


@contextmanager
def _interruptible_between_steps(pipeline: Any) -> Iterator[None]:
    """Ctrl-C comes through right before the denoiser runs, where torch has nothing in its hands."""
    with held_back() as let_through:
        hook = find_denoiser(pipeline).register_forward_pre_hook(lambda *_: let_through(), prepend=True)
        try:
            yield
        finally:
            hook.remove()
