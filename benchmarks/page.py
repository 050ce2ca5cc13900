"""docs/performance.md, generated from the results in docs/performance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import page_sections
from benchmarks.formatting import extra, is_default, median, operands, span, table
from benchmarks.gpu import page as gpu_sections
from benchmarks.measure import ratio
from benchmarks.page_sections import MEMORY_NOISE, MODELS, ROWS_WHILE_SAMPLING, SAMPLED_SELF
from benchmarks.training import EVERY, overhead

Results = dict[str, dict[str, Any]]
"""The results by part."""

REASONS = {
    "softmax, then sum": (
        "ours takes as long as the matrix product that both need, and the other passes over the map are cheap while "
        "the maps of a call fit into the cache"
    ),
    "sampling, all self-attention": (
        "most of the measuring time is the compiled kernel, which takes about as long as a matrix product alone (see "
        "the table of operations): without AMX tiles it can hardly be faster"
    ),
    f"sampling, {ROWS_WHILE_SAMPLING} rows": (
        "in the coarser layers these rows are a quarter of all rows or more, and with few steps opening the capture "
        "weighs more than in a usual sampling"
    ),
    "attention-map-diffusers / ours, time": (
        "ours cannot be faster than plain sampling, and the other tool takes less than five times as long as that: "
        "see peer / plain and ours / plain in the table of other tools"
    ),
    "`entropy-probe --help`": "nearly all of it is the import of typer and rich",
}
"""Reasons for missed goals, from profiles, by the beginning of the quantity."""


@dataclass(frozen=True)
class Goal:
    """A row of the table of goals."""

    quantity: str
    goal: str
    measured: str
    reached: bool


def page(folder: Path) -> str:
    """Return the page of a folder of results, as Markdown."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    results = {part: result for part, result in found.items() if not part.startswith("cuda-")}
    on_gpus = [result for part, result in found.items() if part.startswith("cuda-")]
    return "\n\n".join([head(results), *sections(results), gpu_sections.section(on_gpus)]) + "\n"


def sections(results: Results) -> Iterator[str]:
    goals = list(goals_of(results))
    rows = [(g.quantity, g.goal, g.measured, "yes" if g.reached else "**no**") for g in goals]
    yield "## Goals\n\n" + table(("quantity", "goal", "measured", "reached"), rows)
    quantities = [goal.quantity for goal in goals if not goal.reached]
    missed = [why for begin, why in REASONS.items() if any(quantity.startswith(begin) for quantity in quantities)]
    if missed:
        yield "Reasons for the missed goals:\n\n" + "\n".join(f"- {why[0].upper()}{why[1:]}." for why in missed)
    for part, section in (
        ("calls", page_sections.calls),
        ("sampling", page_sections.sampling),
        ("training", page_sections.training),
        ("peers", page_sections.peers),
        ("growth", page_sections.growth),
        ("startup", page_sections.startup),
    ):
        yield section(results[part]) if part in results else f"`python -m benchmarks {part}` has not been run."


def head(results: Results) -> str:
    parts = sorted(results)
    machines = [machine(results[part]["machine"]) for part in parts]
    distinct = set(machines)
    by_part = "\n".join(f"- {p}: {m}" for p, m in zip(parts, machines, strict=True))
    quick = " **A smoke run (`--quick`): its numbers mean nothing.**" if any(results[p]["quick"] for p in parts) else ""
    return f"""# Cost of measuring

`python -m benchmarks` generates this page from the results in `docs/performance/`; every number is measured.{quick}

{machines[0] if len(distinct) == 1 else by_part}

Every time is a ratio of two medians. The contenders run in one process, in rounds and in random order: a slow moment
of the machine then affects all of them. With one thread, the time is the CPU time of the process; with several
threads, and for start-up, it is wall time. Memory is the rise of the peak of a process, in a new process for each
contender. For memory, glibc is set to return large blocks at once; for times, to keep them
(`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`)."""


def machine(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    kernels = "compiled kernel" if facts["kernels"] else "no compiled kernel"
    gpu = facts["gpu"] or "no GPU"
    return (
        f"{facts['processor']}, {facts['cores']} cores, torch with {facts['threads']} threads, "
        f"{' '.join(facts['instructions'])}; {gpu}; {kernels}; {versions}."
    )


def goals_of(results: Results) -> Iterator[Goal]:
    """Yield the goals whose part was measured."""
    if "calls" in results:
        yield from _goals_of_calls(results["calls"]["cases"])
    if "sampling" in results:
        yield from _goals_of_sampling(results["sampling"]["cases"])
    if "training" in results:
        ratios = [overhead(case) for case in results["training"]["cases"]]
        name = f"training, one of {EVERY} steps monitored / plain"
        yield Goal(name, "≤ 1.02", f"{min(ratios):.4f} to {max(ratios):.4f}", max(ratios) <= 1.02)
    if "peers" in results:
        yield from _goals_of_peers(results["peers"]["cases"])
    if "startup" in results:
        seconds = median(results["startup"]["seconds"]["entropy-probe --help"])
        yield Goal("`entropy-probe --help`, seconds", "≤ 0.5", f"{seconds:.2f}", seconds <= 0.5)
    if "growth" in results:
        yield from _goals_of_growth(results["growth"]["records"]["reports"])


def _goals_of_calls(cases: list[dict[str, Any]]) -> Iterator[Goal]:
    by_tokens = {case["tokens"]: case for case in cases if is_default(case)}
    seconds = {tokens: case["seconds"] for tokens, case in by_tokens.items()}
    exact = [ratio(seconds[n], "flash", "attention") for n in seconds if 256 <= n <= 2**14]
    yield Goal("exact entropy / one attention call, N = 256 to 16,384", "≤ 1.05", span(exact), max(exact) <= 1.05)
    naive = [
        ratio(seconds[n], "softmax, then sum", "flash")
        for n in seconds
        if n >= 256 and "softmax, then sum" in seconds[n]
    ]
    yield Goal("softmax, then sum / exact entropy, N from 256", "≥ 5", span(naive), min(naive) >= 5)
    if 2**14 in by_tokens:
        memory = median(by_tokens[2**14]["memory"]["flash"]) / operands(by_tokens[2**14])
        yield Goal("extra memory at N = 16,384, relative to q + k", "≤ 2", f"{memory:.2f}", memory <= 2)
        growth = ratio(seconds[2**14], "flash", "attention") / ratio(seconds[2**10], "flash", "attention")
        yield Goal("growth of the ratio, N = 1,024 to 16,384", "≤ 1.10", f"{growth:.2f}", growth <= 1.1)


def _goals_of_sampling(cases: list[dict[str, Any]]) -> Iterator[Goal]:
    for tokens, way, name, limit in (
        (1024, "self", "sampling, all self-attention exact / plain, N = 1,024", 1.10),
        (4096, "self", "sampling, all self-attention exact / plain, N = 4,096", 1.30),
        (4096, SAMPLED_SELF, f"sampling, {ROWS_WHILE_SAMPLING} rows of all self-attention / plain, N = 4,096", 1.03),
    ):
        chosen = [case for case in cases if case["tokens"] == tokens]
        values = [ratio(case["seconds"], way, "plain") for case in chosen]
        measured = ", ".join(f"{v:.2f} ({MODELS[case['model']]})" for v, case in zip(values, chosen, strict=True))
        if chosen:
            yield Goal(name, f"≤ {limit:.2f}", measured, max(values) <= limit)


def _goals_of_growth(reports: list[dict[str, Any]]) -> Iterator[Goal]:
    for case in reports:
        if case["records"] >= 10**7 and "seconds" in case:
            seconds, memory = case["seconds"], case["memory"]
            yield Goal("report of ten million records, seconds", "≤ 60", f"{seconds:.0f}", seconds <= 60)
            yield Goal("report of ten million records, MiB", "≤ 2,048", f"{memory:,.0f}", memory <= 2048)


def _goals_of_peers(cases: list[dict[str, Any]]) -> Iterator[Goal]:
    for case in cases:
        if case["peer"] == "attention-map-diffusers" and "seconds" in case:
            where = f"{MODELS[case['model']]}, N = {case['tokens']:,}"
            times = ratio(case["seconds"], "peer", "ours")
            yield Goal(f"attention-map-diffusers / ours, time, {where}", "≥ 5", f"{times:.1f}", times >= 5)
            peer, ours = extra(case["memory"], "peer"), extra(case["memory"], "ours")
            times = peer / max(ours, MEMORY_NOISE)
            measured = f"{peer:,.0f} MiB against {ours:.1f} MiB"
            yield Goal(f"attention-map-diffusers / ours, extra memory, {where}", "≥ 100", measured, times >= 100)
