"""Time and memory of the statistics of one call, relative to the attention itself: `python -m benchmarks calls`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import call_in_process, measure_in_rounds, peak_memory, time_in_rounds
from entropy_probe.statistics import cpu, curve, dense, flash, stratified_rows

ROWS = 1_024
"""Query rows of a call, for the contender with sampled rows."""

CHUNK = 1_024
"""Rows of the attention map that the chunked contender computes at once."""


@dataclass(frozen=True)
class Case:
    """The shape of a call; the other cases change one value of the default."""

    tokens: int
    heads: int = 8
    width: int = 64
    dtype: str = "float32"
    device: str = "cpu"

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        shape, dtype = (1, self.heads, self.tokens, self.width), getattr(torch, self.dtype)
        query, key, value = (torch.randn(shape, device=self.device).to(dtype) for _ in range(3))
        return query, key, value


def softmax_then_sum(query: Tensor, key: Tensor) -> Tensor:
    """Return the entropy as it is usually computed: the whole attention map, then -sum p ln p."""
    attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    return torch.special.entr(attention).sum(-1)


def chunked(query: Tensor, key: Tensor) -> Tensor:
    return torch.cat([softmax_then_sum(rows, key) for rows in query.split(CHUNK, -2)], -1)


def without_kernel(query: Tensor, key: Tensor) -> object:
    with patch.object(cpu, "COMPILED", False):
        return flash(query, key)


def sampled(query: Tensor, key: Tensor) -> object:
    return flash(query.index_select(2, stratified_rows(query.shape[2], ROWS).to(query.device)), key)


SAMPLED = f"flash, {ROWS:,} rows"

WAYS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "flash": flash,
    "flash, no kernel": without_kernel,
    SAMPLED: sampled,
    "chunked": chunked,
    "softmax, then sum": softmax_then_sum,
    "dense": dense,
}

MAPS = {"softmax, then sum": 8, "dense": 58}
"""Peak memory by logit, in bytes, of the contenders that store an attention map."""

MAX_MAP_BYTES = 2**32
"""A contender whose map needs more is skipped."""

MAX_LOGITS = 2**30
"""Calls with more logits take minutes: only the fast contenders are measured."""


def fits(name: str, case: Case) -> bool:
    """Return whether a contender differs from `flash` in this case, has enough memory, and does not take minutes."""
    if case.tokens <= ROWS and name == SAMPLED:
        return False
    if case.heads * case.tokens**2 > MAX_LOGITS and name not in ("flash", SAMPLED):
        return False
    return MAPS.get(name, 0) * case.heads * case.tokens**2 <= MAX_MAP_BYTES


def times(case: Case, seconds: float) -> dict[str, list[float]]:
    query, key, value = case.tensors()

    def bind(way: Callable[[Tensor, Tensor], object]) -> Callable[[], object]:
        return lambda: way(query, key)

    ways = {name: bind(way) for name, way in WAYS.items() if fits(name, case)}
    if case.device == "cuda":  # CUDA has one kernel
        ways.pop("flash, no kernel", None)
    attention = {"attention": lambda: F.scaled_dot_product_attention(query, key, value)}
    if case.device == "cuda":
        return time_in_rounds(attention | ways, seconds, wait=torch.cuda.synchronize, clock=time.perf_counter)
    return time_in_rounds(attention | ways, seconds)


def memory(name: str, case: Case) -> float:
    """Return the peak memory of one call in addition to its query, key and value, in MiB, after a small call."""

    def way(query: Tensor, key: Tensor, value: Tensor) -> object:
        if name == "attention":
            return F.scaled_dot_product_attention(query, key, value)
        return WAYS[name](query, key)

    way(*replace(case, tokens=2 * ROWS if name == SAMPLED else 64).tensors())
    tensors = case.tensors()
    if case.device == "cpu":
        return peak_memory(lambda: way(*tensors))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way(*tensors)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def cases(quick: bool) -> list[Case]:
    sizes = (64, 256, 1024) if quick else (64, 256, 1024, 4096, 16384)
    base = [Case(n) for n in sizes]
    variants = [Case(1024, heads=1), Case(1024, heads=24), Case(1024, width=40), Case(1024, width=128)]
    variants.append(Case(1024, dtype="bfloat16"))
    long = [] if quick else [Case(2**16, heads=1)]
    return base + variants + long


def measure_all(quick: bool) -> Iterator[dict[str, Any]]:
    for case in cases(quick):
        print(f"  {case}", flush=True)
        seconds = times(case, 1 if quick else 8)
        peaks = {}
        if case in [Case(n) for n in (1024, 4096, 16384)]:
            processes = {name: partial(call_in_process, memory, name, case) for name in seconds}
            peaks = measure_in_rounds(processes, 1 if quick else 3)
        yield {**asdict(case), "seconds": seconds, "memory": peaks}


def pieces(case: Case, seconds: float) -> dict[str, list[float]]:
    """Return the seconds of the individual operations of softmax-then-sum, and of `flash`."""
    query, key, _ = case.tensors()
    logits = query @ key.mT / query.shape[-1] ** 0.5
    attention = logits.softmax(-1)
    operations: dict[str, Callable[[], object]] = {
        "product": lambda: query @ key.mT,
        "scale": lambda: logits / query.shape[-1] ** 0.5,
        "softmax": lambda: logits.softmax(-1),
        "-p ln p": lambda: torch.special.entr(attention),
        "sum": lambda: attention.sum(-1),
        "flash": lambda: flash(query, key),
    }
    return time_in_rounds(operations, seconds)


CURVES = (1, 2, 5, 8)
"""Numbers of scale factors on a measured curve H(g)."""


def curves(case: Case, seconds: float) -> dict[str, list[float]]:
    """Return the seconds of the curve H(g), by the number of values of g."""
    query, key, _ = case.tensors()
    of = {count: [0.5 + 0.25 * n for n in range(count)] for count in CURVES}
    return time_in_rounds({str(count): partial(curve, query, key, of[count]) for count in CURVES}, seconds)


def run(quick: bool) -> dict[str, Any]:
    small, seconds = (Case(256), Case(1024)), 1 if quick else 8
    operations = [asdict(case) | {"seconds": pieces(case, seconds)} for case in small]
    by_count = [asdict(case) | {"seconds": curves(case, seconds)} for case in small]
    return {"cases": list(measure_all(quick)), "pieces": operations, "curves": by_count}
