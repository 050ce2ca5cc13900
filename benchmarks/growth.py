"""Growth of the cost with layers, steps and records: `python -m benchmarks growth`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from benchmarks.endurance import disk_use, typical_sweep
from benchmarks.measure import (
    call_in_interpreter,
    call_in_process,
    four_digits,
    measure_in_rounds,
    peak_memory,
    time_in_rounds,
)
from benchmarks.models import Sampling, pipeline
from benchmarks.sampling import sample
from entropy_probe import capture
from entropy_probe.reports import Report
from entropy_probe.runs import Sweep

REPORT_TIMEOUT = 420
"""In seconds."""


class Stack(nn.Module):
    """A sequence of attention layers, like a model with many small calls."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Attention(256, heads=8, dim_head=32) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = tokens + layer(F.layer_norm(tokens, tokens.shape[-1:]))
        return tokens


def stack_forward(layers: int, captured: bool) -> Callable[[], object]:
    """Return a function that runs a stack of layers on two batch items of 256 tokens."""
    stack, tokens = Stack(layers).eval(), torch.randn(2, 256, 256)

    @torch.no_grad()
    def work() -> None:
        with capture(stack) if captured else nullcontext():
            stack(tokens)

    return work


def stack_memory(layers: int, captured: bool) -> float:
    stack_forward(4, captured)()
    return peak_memory(stack_forward(layers, captured))


def steps_memory(name: str, sampling: Sampling) -> float:
    """Return the peak memory of a sampling run, in MiB, after a run of one step."""
    sample(name, replace(sampling, steps=1))
    return peak_memory(lambda: sample(name, sampling))


def with_layers(quick: bool) -> list[dict[str, Any]]:
    cases = []
    for layers in (4, 16) if quick else (4, 16, 64, 256):
        ways = {name: stack_forward(layers, name == "captured") for name in ("plain", "captured")}
        seconds = time_in_rounds(ways, 1 if quick else 8)
        processes = {name: partial(call_in_process, stack_memory, layers, name == "captured") for name in ways}
        peaks = measure_in_rounds(processes, 1 if quick else 3)
        cases.append({"layers": layers, "seconds": seconds, "memory": peaks})
    return cases


def with_steps(quick: bool) -> list[dict[str, Any]]:
    cases = []
    for steps in (2, 4) if quick else (5, 20, 80):
        sampling = Sampling("reference", 64, 1, steps)
        names = {"plain": "plain", "captured": "self"}
        ways = {shown: partial(sample, name, sampling) for shown, name in names.items()}
        seconds = time_in_rounds(ways, 1 if quick else 20)
        processes = {shown: partial(call_in_process, steps_memory, name, sampling) for shown, name in names.items()}
        peaks = measure_in_rounds(processes, 1 if quick else 3)
        cases.append({"steps": steps, "seconds": seconds, "memory": peaks})
    return cases


def enlarge(sampled: Sweep, records: int, folder: Path) -> dict[str, Any]:
    """Write a run with at least this number of records, from copies of sampled cells with new seeds and noise."""
    random = np.random.default_rng(0)
    tables = {cell: sampled.run.read([cell]) for cell in sampled.grid.cells()}
    images = {cell: sampled.image(cell.prompt, cell.size, cell.seed) for cell in tables}
    seeds = len(sampled.grid.seeds)
    times = -(-records // sum(map(len, tables.values())))
    grid = replace(sampled.grid, seeds=tuple(range(seeds * times)))
    run = replace(sampled.run, path=folder)
    run.create(sampled.manifest)
    run.write("grid.json", grid.to_json())
    written, seconds = 0, 0.0
    for cell in grid.cells():
        source = replace(cell, seed=cell.seed % seeds)
        noise = random.normal(1, 0.01, len(tables[source])).astype(np.float32)
        frame = tables[source].assign(seed=cell.seed, entropy=tables[source]["entropy"] * noise)
        began = time.perf_counter()
        run.save(cell, frame, images[source])
        seconds += time.perf_counter() - began
        written += len(frame)
    return {"records": written, "cells": len(grid), "writing": four_digits(seconds)}


def write_report(folder: str) -> dict[str, float]:
    """Write the report of a run directory; return its time in seconds and its memory in MiB."""
    began = time.perf_counter()
    rise = peak_memory(lambda: Report.open(folder).save(Path(folder) / "report.html", data=True))
    return {"seconds": four_digits(time.perf_counter() - began), "memory": round(rise)}


def with_records(quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        sampled = typical_sweep(pipeline("reference"), Path(name) / "typical")
        records, tables, _ = disk_use(sampled.run)
        reports = []
        for wanted in (10**5,) if quick else (10**5, 10**6, 10**7):
            folder = Path(name) / str(wanted)
            case = enlarge(sampled, wanted, folder)
            try:
                case |= call_in_interpreter(write_report, str(folder), timeout=REPORT_TIMEOUT)
            except RuntimeError as error:
                case["error"] = str(error)
            print(f"  {case}", flush=True)
            reports.append(case)
        return {"bytes": four_digits(tables / records), "reports": reports}


def run(quick: bool) -> dict[str, Any]:
    return {"layers": with_layers(quick), "steps": with_steps(quick), "records": with_records(quick)}
