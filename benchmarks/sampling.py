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

ROWS = 256
"""Of every call, where rows are sampled."""

SELF = "*attn1"
"""The self-attention of a UNet; attn2 attends to the text."""

WAYS: dict[str, Callable[[Any], AbstractContextManager[object]]] = {
    "plain": nullcontext,
    "all layers": capture,
    "self": lambda pipe: capture(pipe, layers=SELF),
    f"all layers, {ROWS} rows": lambda pipe: capture(pipe, rows=ROWS),
    f"self, {ROWS} rows": lambda pipe: capture(pipe, layers=SELF, rows=ROWS),
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


def profile(sampling: Sampling) -> dict[str, float]:
    """Seconds that capturing all self-attention takes within a sampling, and those of them in the compiled kernel."""
    profiler = cProfile.Profile(own_clock())
    profiler.runcall(sample, "self", sampling)
    found = {"whole": 0.0, "measuring": 0.0, "kernel": 0.0}
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if file.endswith("benchmarks/sampling.py") and name == "sample":
            found["whole"] = rounded(cumulative)
        if file.endswith("capture/probe.py") and name == "measure":
            found["measuring"] = rounded(cumulative)
        if "built-in method" in name and name.endswith(".statistics>"):
            found["kernel"] = rounded(cumulative)
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
            "profile": profile(sampling),
        }  # fmt: skip


def run(quick: bool) -> dict[str, Any]:
    return {"cases": list(measured(quick))}
