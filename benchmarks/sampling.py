"""Time and memory of sampling under capture, relative to plain sampling: `python -m benchmarks sampling`."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from benchmarks.measure import (
    call_in_process,
    default_clock,
    four_digits,
    measure_in_rounds,
    peak_memory,
    time_in_rounds,
)
from benchmarks.models import Sampling, pipeline
from entropy_probe import capture
from entropy_probe.statistics import cpu

ROWS = 256
"""Query rows of a call, for the contenders with sampled rows."""

SELF = "*attn1"
"""Self-attention layers of a UNet; attn2 is cross-attention."""

WAYS: dict[str, Callable[[Any], AbstractContextManager[object]]] = {
    "plain": nullcontext,
    "all layers": lambda pipe: capture(pipe, rows="all"),
    "self": lambda pipe: capture(pipe, layers=SELF, rows="all"),
    f"all layers, {ROWS} rows": lambda pipe: capture(pipe, rows=ROWS),
    f"self, {ROWS} rows": lambda pipe: capture(pipe, layers=SELF, rows=ROWS),
    "all layers, auto": capture,
    "self, auto": lambda pipe: capture(pipe, layers=SELF),
}

MEMORY_WAYS = ("self", "all layers")
"""Ways whose memory is measured; sampled rows need less."""


def sample(name: str, sampling: Sampling) -> None:
    with WAYS[name](pipeline(sampling.model)):
        sampling()


def memory(name: str, sampling: Sampling) -> float:
    """Return the peak memory of two steps, in MiB, in a process that has sampled before."""
    work = replace(sampling, steps=2)
    work()
    return peak_memory(lambda: sample(name, work))


PROFILED = {
    "opening": ("attention/capturing.py", "_recording"),
    "measuring": ("attention/measuring.py", "measure"),
    "kernel": ("~", "<built-in method entropy_probe.statistics.{}.statistics>"),
}
"""File and function of each part: preparing and removing the capture, measuring the calls, the kernel."""


def profile(name: str, sampling: Sampling) -> dict[str, float]:
    """Return the seconds of a sampling run, and of the parts of capture in it."""
    profiler = cProfile.Profile(default_clock())
    profiler.runcall(sample, name, sampling)
    timed: Any = pstats.Stats(profiler)  # its attribute `stats` is missing in typeshed
    seconds = {"whole": four_digits(timed.total_tt)}
    for part, (ending, function) in PROFILED.items():
        names = {function.format(kernel) for kernel in cpu.KERNELS}
        seconds[part] = four_digits(
            sum(
                cumulative
                for (file, _, called), (_, _, _, cumulative, _) in timed.stats.items()
                if file.endswith(ending) and called in names
            )
        )
    return seconds


def samplings(quick: bool) -> list[Sampling]:
    if quick:
        return [Sampling("reference", 64, 2, 2)]
    return [
        Sampling("reference", 64, 4, 4),
        Sampling("reference", 128, 2, 4),
        Sampling("reference", 256, 1, 2),
        Sampling("sd15", 256, 1, 2),
        Sampling("sd15", 512, 1, 1),
    ]


def measure_all(quick: bool) -> Iterator[dict[str, Any]]:
    for sampling in samplings(quick):
        print(f"  {sampling}", flush=True)
        ways = {name: partial(sample, name, sampling) for name in WAYS}
        seconds = time_in_rounds(ways, 2 if quick else 45)
        names = ("plain", *MEMORY_WAYS)
        processes = {name: partial(call_in_process, memory, name, sampling) for name in names}
        peaks = measure_in_rounds(processes, 1 if quick else 3)
        yield {
            **asdict(sampling), "tokens": sampling.tokens, "seconds": seconds, "memory": peaks,
            "profile": {name: profile(name, sampling) for name in ("self", f"self, {ROWS} rows")},
        }  # fmt: skip


def run(quick: bool) -> dict[str, Any]:
    return {"cases": list(measure_all(quick))}
