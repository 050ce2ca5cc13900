"""Time, memory and latents of sampling with and without capture, in the layouts of SDXL and Flux."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.layouts import LAYOUTS
from benchmarks.gpu.setting import Setting, measure_cases
from benchmarks.measure import time_in_rounds
from entropy_probe import capture, scaled
from entropy_probe.laws import Constant

WAYS: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "plain": nullcontext,
    "all layers": lambda pipe: capture(pipe, rows="all"),
    "all layers, auto": capture,
    "scaled": lambda pipe: scaled(pipe, Constant(1.1)),
}


@dataclass(frozen=True)
class Sampling:
    """One image of a layout."""

    layout: str
    size: int
    steps: int


def sample(pipeline: Any, arguments: dict[str, Any], sampling: Sampling, way: str) -> Tensor:
    """Return the latents."""
    generator = torch.Generator("cpu").manual_seed(0)
    with WAYS[way](pipeline):
        latents: Tensor = pipeline(
            height=sampling.size, width=sampling.size, num_inference_steps=sampling.steps, output_type="latent",
            generator=generator, **arguments,
        ).images  # fmt: skip
    return latents


def measure(sampling: Sampling, setting: Setting) -> dict[str, Any]:
    """Return seconds by way, peak memory by way in MiB, and whether the latents are bit-identical."""
    dtype = torch.float32 if setting.device == "cpu" else torch.bfloat16
    pipeline, arguments = LAYOUTS[sampling.layout](setting.device, dtype, setting.quick)
    pipeline.set_progress_bar_config(disable=True)
    run = partial(sample, pipeline, arguments, sampling)
    latents = {way: run(way) for way in ("plain", *WAYS)}
    again = run("plain")
    ways = {way: partial(run, way) for way in WAYS}
    seconds = time_in_rounds(
        ways,
        min(40.0, setting.seconds_left),
        wait=setting.wait,
        clock=time.perf_counter,
        most=3 if setting.quick else 21,
    )
    return {
        "seconds": seconds,
        "memory": {way: [_peak(ways[way])] for way in WAYS} if setting.device == "cuda" else {},
        "deterministic": torch.equal(latents["plain"], again),
        "identical": {way: torch.equal(latents["plain"], latents[way]) for way in WAYS},
        "finite": bool(latents["plain"].isfinite().all()),
    }


def _peak(work: Callable[[], object]) -> float:
    """Return the peak of the GPU memory during `work`, in MiB, in addition to the model."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def samplings(quick: bool) -> list[Sampling]:
    if quick:
        return [Sampling("sdxl", 128, 2), Sampling("flux", 128, 2)]
    return [Sampling("sdxl", 1024, 8), Sampling("flux", 1024, 8), Sampling("sdxl", 2048, 4)]


def run(setting: Setting) -> dict[str, Any]:
    return measure_cases(samplings(setting.quick), lambda sampling: measure(sampling, setting), setting)
