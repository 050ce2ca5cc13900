"""How the cost grows: with layers, with steps, with records; docs/performance.md has the growth with tokens besides.

python -m benchmarks growth
"""

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

from benchmarks.endurance import space, usual
from benchmarks.measure import apart, elsewhere, in_turns, peak, rounded, told_in_turns
from benchmarks.models import Sampling, pipeline
from benchmarks.sampling import sample
from entropy_probe import capture
from entropy_probe.reports import Report
from entropy_probe.runs import Sweep

PATIENCE = 420
"""Seconds after which a report is given up."""


class Stack(nn.Module):
    """Attention layers one behind the other: what models of many small calls are made of."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Attention(256, heads=8, dim_head=32) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = tokens + layer(F.layer_norm(tokens, tokens.shape[-1:]))
        return tokens


def through(layers: int, captured: bool) -> Callable[[], object]:
    """A forward of the stack, on two batch items of 256 tokens."""
    stack, tokens = Stack(layers).eval(), torch.randn(2, 256, 256)

    @torch.no_grad()
    def work() -> None:
        with capture(stack) if captured else nullcontext():
            stack(tokens)

    return work


def stack_memory(layers: int, captured: bool) -> float:
    through(4, captured)()
    return peak(through(layers, captured))


def steps_memory(name: str, sampling: Sampling) -> float:
    """MiB that a sampling takes beside one of a single step."""
    sample(name, replace(sampling, steps=1))
    return peak(lambda: sample(name, sampling))


def with_layers(quick: bool) -> list[dict[str, Any]]:
    found = []
    for layers in (4, 16) if quick else (4, 16, 64, 256):
        ways = {name: through(layers, name == "captured") for name in ("plain", "captured")}
        seconds = in_turns(ways, 1 if quick else 8)
        processes = {name: partial(apart, stack_memory, layers, name == "captured") for name in ways}
        remembered = told_in_turns(processes, 1 if quick else 3)
        found.append({"layers": layers, "seconds": seconds, "memory": remembered})
    return found


def with_steps(quick: bool) -> list[dict[str, Any]]:
    found = []
    for steps in (2, 4) if quick else (5, 20, 80):
        sampling = Sampling("reference", 64, 1, steps)
        names = {"plain": "plain", "captured": "self"}
        ways = {shown: partial(sample, name, sampling) for shown, name in names.items()}
        seconds = in_turns(ways, 1 if quick else 20)
        processes = {shown: partial(apart, steps_memory, name, sampling) for shown, name in names.items()}
        remembered = told_in_turns(processes, 1 if quick else 3)
        found.append({"steps": steps, "seconds": seconds, "memory": remembered})
    return found


def multiplied(made: Sweep, records: int, folder: Path) -> dict[str, Any]:
    """A run of at least so many records, made of the cells of one that was sampled: other seeds, other digits."""
    random = np.random.default_rng(0)
    own = {cell: made.run.read([cell]) for cell in made.grid.cells()}
    images = {cell: made.image(cell.prompt, cell.size, cell.seed) for cell in own}
    seeds = len(made.grid.seeds)
    times = -(-records // sum(map(len, own.values())))
    grid = replace(made.grid, seeds=tuple(range(seeds * times)))
    run = replace(made.run, path=folder)
    run.create(made.manifest)
    run.write("grid.json", grid.to_json())
    written, seconds = 0, 0.0
    for cell in grid.cells():
        source = replace(cell, seed=cell.seed % seeds)
        noise = random.normal(1, 0.01, len(own[source])).astype(np.float32)
        frame = own[source].assign(seed=cell.seed, entropy=own[source]["entropy"] * noise)
        began = time.perf_counter()
        run.save(cell, frame, images[source])
        seconds += time.perf_counter() - began
        written += len(frame)
    return {"records": written, "cells": len(grid), "writing": rounded(seconds)}


def reported(folder: str) -> dict[str, float]:
    """Seconds and MiB of a report of a run directory."""
    began = time.perf_counter()
    rise = peak(lambda: Report.open(folder).save(Path(folder) / "report.html"))
    return {"seconds": rounded(time.perf_counter() - began), "memory": round(rise)}


def with_records(quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        made = usual(pipeline("reference"), Path(name) / "usual")
        records, tables, _ = space(made.run)
        reports = []
        for wanted in (10**5,) if quick else (10**5, 10**6, 10**7):
            folder = Path(name) / str(wanted)
            case = multiplied(made, wanted, folder)
            try:
                case |= elsewhere("benchmarks.growth:reported", str(folder), patience=PATIENCE)
            except RuntimeError as error:
                case["error"] = str(error)
            print(f"  {case}", flush=True)
            reports.append(case)
        return {"bytes": rounded(tables / records), "reports": reports}


def run(quick: bool) -> dict[str, Any]:
    return {"layers": with_layers(quick), "steps": with_steps(quick), "records": with_records(quick)}
