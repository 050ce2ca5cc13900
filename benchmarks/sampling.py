"""What capturing takes while a pipeline samples, beside the same sampling without it.

python -m benchmarks sampling
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from benchmarks.measure import apart, in_turns, own_clock, peak, rounded, told_in_turns
from benchmarks.models import Sampling, pipeline
from entropy_probe import capture
from entropy_probe.statistics import cpu

ROWS = 256
"""Of every call, where rows are sampled."""

SELF = "*attn1"
"""The self-attention of a UNet; attn2 attends to the text."""

WAYS: dict[str, Callable[[Any], AbstractContextManager[object]]] = {
    "plain": nullcontext,
    "all layers": lambda pipe: capture(pipe, rows="all"),
    "self": lambda pipe: capture(pipe, layers=SELF, rows="all"),
    f"all layers, {ROWS} rows": lambda pipe: capture(pipe, rows=ROWS),
    f"self, {ROWS} rows": lambda pipe: capture(pipe, layers=SELF, rows=ROWS),
    "all layers, auto": capture,
    "self, auto": lambda pipe: capture(pipe, layers=SELF),
}

REMEMBERED = ("self", "all layers")
"""Those whose memory is measured: fewer rows take less."""


def sample(name: str, sampling: Sampling) -> None:
    with WAYS[name](pipeline(sampling.model)):
        sampling()


def memory(name: str, sampling: Sampling) -> float:
    """MiB that two steps take at their peak, in a process that has sampled before; growth has more steps."""
    work = replace(sampling, steps=2)
    work()
    return peak(lambda: sample(name, work))


PROFILED = {
    "opening": ("capture/probe.py", "capture"),
    "measuring": ("capture/probe.py", "measure"),
    "kernel": ("~", "<built-in method entropy_probe.statistics.{}.statistics>"),
}
"""File and name of what is looked for: walking through the modules before and after, the calls, the kernel in them."""


def profile(name: str, sampling: Sampling) -> dict[str, float]:
    """Seconds of a sampling, and of the parts of capturing in it."""
    profiler = cProfile.Profile(own_clock())
    profiler.runcall(sample, name, sampling)
    timed: Any = pstats.Stats(profiler)  # typeshed does not know what it holds
    found = {"whole": rounded(timed.total_tt)}
    for part, (ending, function) in PROFILED.items():
        names = {function.format(kernel) for kernel in cpu.KERNELS}
        found[part] = rounded(
            sum(
                cumulative
                for (file, _, called), (_, _, _, cumulative, _) in timed.stats.items()
                if file.endswith(ending) and called in names
            )
        )
    return found


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


def measured(quick: bool) -> Iterator[dict[str, Any]]:
    for sampling in samplings(quick):
        print(f"  {sampling}", flush=True)
        ways = {name: partial(sample, name, sampling) for name in WAYS}
        seconds = in_turns(ways, 2 if quick else 45)
        names = ("plain", *REMEMBERED)
        processes = {name: partial(apart, memory, name, sampling) for name in names}
        remembered = told_in_turns(processes, 1 if quick else 3)
        yield {
            **asdict(sampling), "tokens": sampling.tokens, "seconds": seconds, "memory": remembered,
            "profile": {name: profile(name, sampling) for name in ("self", f"self, {ROWS} rows")},
        }  # fmt: skip


def run(quick: bool) -> dict[str, Any]:
    return {"cases": list(measured(quick))}
