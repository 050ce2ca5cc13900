"""What a long sweep takes: whether its memory grows with its length, and the space of its records.

python -m benchmarks.endurance
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch

from entropy_probe.models import load
from entropy_probe.runs import LocalEngine, Manifest, RunDirectory, Sweep, sweep

SMALL = dict(sizes=((32, 32),), steps=1, guidance_scale=4.0, scale_factors=(2.0,), batch=4, progress=False)
USUAL = dict(sizes=((32, 32), (64, 64)), steps=8, guidance_scale=4.0, progress=False)


@dataclass(frozen=True)
class Endurance:
    """What was measured.

    Attributes:
        cells: that were sampled one after another.
        resident: memory of the process in MB, after a tenth of the cells, two tenths, ... all.
        growth: MB a thousand cells, by least squares over the second half of them.
        records: of the sweep whose space is measured.
        megabytes: on disk, of a million records.
        images: MB on disk, of the images beside them.
    """

    cells: int
    resident: tuple[float, ...]
    growth: float
    records: int
    megabytes: float
    images: float


@dataclass(frozen=True)
class _Watched:
    """Samples in this process, and notes its memory after every task that was kept."""

    seen: list[tuple[int, float]] = field(default_factory=list)

    def sample(self, pipeline: Any, manifest: Manifest, take: Any) -> Generator[Any, None, None]:
        process, cells = psutil.Process(), 0
        for task, results in LocalEngine().sample(pipeline, manifest, take):
            yield task, results
            cells += len(task.cells)
            self.seen.append((cells, process.memory_info().rss / 1e6))


def resident(pipeline: Any, cells: int, folder: Path) -> list[tuple[int, float]]:
    """Cells that were done, and the memory in MB then."""
    watched = _Watched()
    sweep(pipeline, prompts=("noto red apple",), seeds=range(cells), store=folder, engine=watched, **SMALL)
    return watched.seen


def measure(pipeline: Any, cells: int, folder: Path) -> Endurance:
    """Both sweeps; the one whose memory is measured in a process of its own, forked."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=lambda: theirs.send(resident(pipeline, cells, folder / "long"))
    )
    process.start()
    theirs.close()
    seen = np.array(ours.recv())
    process.join()
    tenths = tuple(float(np.interp(cells * n / 10, *seen.T)) for n in range(1, 11))
    late = seen[len(seen) // 2 :]
    run = usual(pipeline, folder / "usual").run
    records, tables, images = space(run)
    growth = 1000 * float(np.polyfit(*late.T, 1)[0])
    return Endurance(cells, tenths, growth, records, tables / records, images / records)


def usual(pipeline: Any, folder: Path) -> Sweep:
    """A sweep as one makes it."""
    prompts = ("noto red apple", "flat pizza", "noto dog", "flat house")
    return sweep(pipeline, prompts=prompts, seeds=(0, 1), store=folder, **USUAL)


def space(run: RunDirectory) -> tuple[int, int, int]:
    """Records of a run, bytes of its tables, bytes of its images."""
    records = sum(pq.read_metadata(file).num_rows for file in (run.path / "cells").iterdir())
    tables, images = (sum(f.stat().st_size for f in (run.path / n).iterdir()) for n in ("cells", "images"))
    return records, tables, images


def section(found: Endurance) -> str:
    """Of the page docs/reliability.md."""
    marks = "".join(f" {found.cells * n // 10:,} |" for n in range(1, 11))
    values = "".join(f" {value:.0f} |" for value in found.resident)
    return f"""## What a long sweep takes

Memory of a process that samples {found.cells:,} cells, one after another:

| cells |{marks}
|---|{"---|" * 10}
| MB |{values}

Over the second half it changes by {found.growth:+.1f} MB a thousand cells.

A million records take {found.megabytes:.1f} MB on disk, and the images that they are of {found.images:.1f} MB
(measured on {found.records:,} records of the bundled UNet: 32 and 64 pixels, 8 steps, every curve).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--cells", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no other thread
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(asdict(measure(load(options.model, device="cpu"), options.cells, Path(name))), indent=2))


if __name__ == "__main__":
    main()
