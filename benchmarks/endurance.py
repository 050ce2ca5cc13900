"""Memory of a long sweep against its length, and disk use of its records: `python -m benchmarks.endurance`."""

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
TYPICAL = dict(sizes=((32, 32), (64, 64)), steps=8, guidance_scale=4.0, progress=False)


@dataclass(frozen=True)
class Endurance:
    """Memory and disk use of sweeps.

    Attributes:
        cells: number of cells that were sampled.
        resident: memory of the process in MB, after each tenth of the cells.
        growth: MB per thousand cells, by least squares over the second half of them.
        records: records of the sweep whose disk use is measured.
        megabytes: MB on disk per million records.
        images: MB on disk of their images.
    """

    cells: int
    resident: tuple[float, ...]
    growth: float
    records: int
    megabytes: float
    images: float


@dataclass(frozen=True)
class _MemoryEngine:
    """Samples in this process and records its memory after every task."""

    memory: list[tuple[int, float]] = field(default_factory=list)

    def sample(self, pipeline: Any, manifest: Manifest, take: Any) -> Generator[Any, None, None]:
        process, cells = psutil.Process(), 0
        for task, results in LocalEngine().sample(pipeline, manifest, take):
            yield task, results
            cells += len(task.cells)
            self.memory.append((cells, process.memory_info().rss / 1e6))


def resident(pipeline: Any, cells: int, folder: Path) -> list[tuple[int, float]]:
    """Sample a sweep; return pairs of finished cells and memory in MB."""
    engine = _MemoryEngine()
    sweep(pipeline, prompts=("noto red apple",), seeds=range(cells), store=folder, engine=engine, **SMALL)
    return engine.memory


def measure_sweeps(pipeline: Any, cells: int, folder: Path) -> Endurance:
    """Run both sweeps; the long one in a forked process."""
    receiver, sender = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=lambda: sender.send(resident(pipeline, cells, folder / "long"))
    )
    process.start()
    sender.close()
    memory = np.array(receiver.recv())
    process.join()
    tenths = tuple(float(np.interp(cells * n / 10, *memory.T)) for n in range(1, 11))
    late = memory[len(memory) // 2 :]
    run = typical_sweep(pipeline, folder / "typical").run
    records, tables, images = disk_use(run)
    growth = 1000 * float(np.polyfit(*late.T, 1)[0])
    return Endurance(cells, tenths, growth, records, tables / records, images / records)


def typical_sweep(pipeline: Any, folder: Path) -> Sweep:
    """Sample a sweep with typical settings."""
    prompts = ("noto red apple", "flat pizza", "noto dog", "flat house")
    return sweep(pipeline, prompts=prompts, seeds=(0, 1), store=folder, **TYPICAL)


def disk_use(run: RunDirectory) -> tuple[int, int, int]:
    """Return the number of records of a run, and the bytes of its tables and images."""
    records = sum(pq.read_metadata(file).num_rows for file in (run.path / "cells").iterdir())
    tables, images = (sum(f.stat().st_size for f in (run.path / n).iterdir()) for n in ("cells", "images"))
    return records, tables, images


def section(found: Endurance) -> str:
    """Return the section of docs/reliability.md."""
    marks = "".join(f" {found.cells * n // 10:,} |" for n in range(1, 11))
    values = "".join(f" {value:.0f} |" for value in found.resident)
    return f"""## Long sweeps

Memory of a process that samples {found.cells:,} cells:

| cells |{marks}
|---|{"---|" * 10}
| MB |{values}

Over the second half it changes by {found.growth:+.1f} MB per thousand cells.

A million records take {found.megabytes:.1f} MB on disk, and their images {found.images:.1f} MB (measured on
{found.records:,} records of the bundled UNet: 32 and 64 pixels, 8 steps, all curves).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reference", help="name or folder of the model")
    parser.add_argument("--cells", type=int, default=1000, help="cells of the long sweep")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with more threads cannot be forked safely
    with tempfile.TemporaryDirectory() as name:
        print(
            json.dumps(asdict(measure_sweeps(load(options.model, device="cpu"), options.cells, Path(name))), indent=2)
        )


if __name__ == "__main__":
    main()
