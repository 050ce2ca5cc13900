"""Sample a batch of cells. All engines call `sample_cells`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import pandas as pd
from accelerate.utils.memory import clear_device_cache
from PIL import Image

from entropy_probe.attention import capture, find_denoiser, parts_of_denoiser
from entropy_probe.interruption import delay_interrupt
from entropy_probe.laws import Original, ScalingLaw, scaled
from entropy_probe.models import Clip, format_size, is_out_of_memory, middle, sample_clips
from entropy_probe.runs.cells import COLUMNS
from entropy_probe.runs.grid import Cell
from entropy_probe.runs.manifest import Manifest


@dataclass(frozen=True)
class SampledCell:
    """A cell that was sampled.

    Attributes:
        cell: the cell.
        frame: its table, with the columns `cells.COLUMNS`.
        clip: its image, or the frames of its video.
        batch: cells that were sampled in the same batch.
    """

    cell: Cell
    frame: pd.DataFrame
    clip: Clip
    batch: tuple[Cell, ...]

    @property
    def image(self) -> Image.Image:
        """The image, or the middle frame of the video."""
        return middle(self.clip)


@dataclass(frozen=True)
class FailedCell:
    """A cell that could not be sampled.

    Attributes:
        cell: the cell.
        reason: one line, such as "out of memory at 640: ...".
    """

    cell: Cell
    reason: str


def sample_cells(
    pipeline: Any,
    cells: list[Cell],
    law: ScalingLaw,
    manifest: Manifest,
    pipeline_kwargs: Mapping[str, Any] | None = None,
) -> Iterator[SampledCell | FailedCell]:
    """Sample cells of one size and law in one batch. If the memory is too small, split the batch into halves.

    On a CPU, the same batch gives bit-identical records. Another batch can change the last digits.

    Args:
        pipeline: a diffusers pipeline.
        cells: cells of one size and law.
        law: that law.
        manifest: settings of the run.
        pipeline_kwargs: further arguments of the pipeline's call.

    >>> import entropy_probe as ep
    >>> from entropy_probe.laws import Original
    >>> swept = ep.sweep(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], steps=1, progress=False)
    >>> cells = list(swept.grid.cells())
    >>> [sampled.image.size for sampled in sample_cells(swept.pipeline, cells, Original(), swept.manifest)]
    [(32, 32)]
    """
    try:
        with _interruptible_between_steps(pipeline):
            sampled = _sample_batch(pipeline, cells, law, manifest, pipeline_kwargs)
        yield from sampled
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
    # Outside the except clause: its traceback keeps the tensors of the failed batch alive.
    clear_device_cache(garbage_collection=True)
    if len(cells) == 1:
        yield FailedCell(cells[0], f"out of memory at {format_size(cells[0].size)}: {reason}")
        return
    for part in (cells[: len(cells) // 2], cells[len(cells) // 2 :]):
        yield from sample_cells(pipeline, part, law, manifest, pipeline_kwargs)


def _sample_batch(
    pipeline: Any, cells: list[Cell], law: ScalingLaw, manifest: Manifest, pipeline_kwargs: Mapping[str, Any] | None
) -> list[SampledCell]:
    size = cells[0].size
    frames = manifest.training_frames
    under_law = nullcontext() if isinstance(law, Original) else scaled(pipeline, law, training_frames=frames)
    # Each batch samples other rows: the variance over images then includes the variance from sampling rows.
    seed = crc32(cells[0].name.encode())
    measuring = capture(
        pipeline, rows=manifest.rows, scale_factors=manifest.scale_factors, seed=seed, training_frames=frames
    )
    with under_law, measuring as captured:
        sampled_clips = sample_clips(
            pipeline,
            [cell.prompt for cell in cells],
            size,
            [cell.seed for cell in cells],
            steps=manifest.steps,
            guidance_scale=manifest.guidance_scale,
            pipeline_kwargs=pipeline_kwargs,
        )
    frame = captured.frame()
    sampled = []
    for item, (cell, clip) in enumerate(zip(cells, sampled_clips, strict=True)):
        table = frame[frame["sample"] == item].assign(
            prompt=cell.prompt, seed=cell.seed, height=size[0], width=size[1], law=cell.law
        )
        sampled.append(SampledCell(cell, table[[column.name for column in COLUMNS]], clip, tuple(cells)))
    return sampled


@contextmanager
def _interruptible_between_steps(pipeline: Any) -> Iterator[None]:
    """Deliver Ctrl-C only before a call of the denoiser, where interrupting torch is safe."""
    with delay_interrupt() as deliver:
        parts = parts_of_denoiser(find_denoiser(pipeline)).values()
        hooks = [part.register_forward_pre_hook(lambda *_: deliver(), prepend=True) for part in parts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
