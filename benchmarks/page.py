"""docs/performance.md, from the results in docs/performance alone: no figure is typed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.calls import LARGEST, ROWS, SAMPLED
from benchmarks.measure import ratio
from benchmarks.sampling import REMEMBERED
from benchmarks.sampling import ROWS as ROWS_WHILE_SAMPLING

Found = dict[str, dict[str, Any]]
"""The results of the parts that were measured."""

CALLS = ("flash", "flash, no kernel", SAMPLED, "chunked", "softmax, then sum", "dense")
SAMPLED_SELF = f"self, {ROWS_WHILE_SAMPLING} rows"
WAYS = ("self", "all layers", SAMPLED_SELF, f"all layers, {ROWS_WHILE_SAMPLING} rows", "self, auto", "all layers, auto")
"""Those that the results have are shown."""
MODELS = {"reference": "bundled UNet", "sd15": "SD 1.5's layout"}
FINEST = 1.0
"""MiB that count as none: the memory of the same sampling differs by as much from process to process."""

REASONS = {
    "softmax, then sum": (
        "ours takes as long as the one matrix product that both need, and the passes over the map that follow it are "
        "cheap while the maps of a call stay in cache"
    ),
    "sampling, all self-attention": (
        "most of measuring is the compiled kernel, and the table of pieces shows that it takes about as long as a "
        "matrix product alone: without the tiles of AMX there is little left to gain from it"
    ),
    f"sampling, {ROWS_WHILE_SAMPLING} rows": (
        "the coarser layers, of which these rows are a quarter or all, and opening the capture, which in so few steps "
        "counts for more than in a usual sampling"
    ),
    "attention-map-diffusers / ours, time": (
        "ours cannot be below plain sampling, and the other itself takes less than five times that here: see "
        "peer / plain and ours / plain in the table of others"
    ),
    "`entropy-probe --help`": "all of it is Python's imports, of typer and rich above all",
}
"""Why a goal was missed, as the profiler has it, by how its figure begins."""


@dataclass(frozen=True)
class Goal:
    """A row of the table of goals."""

    figure: str
    goal: str
    found: str
    reached: bool


def page(folder: Path) -> str:
    """The page of a folder of results."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    return "\n\n".join([head(found), *sections(found)]) + "\n"


def sections(found: Found) -> Iterator[str]:
    goals = list(goals_of(found))
    rows = [(g.figure, g.goal, g.found, "yes" if g.reached else "**no**") for g in goals]
    yield "## The goals\n\n" + table(("figure", "goal", "found", "reached"), rows)
    missed = [why for begin, why in REASONS.items() if any(g.figure.startswith(begin) and not g.reached for g in goals)]
    if missed:
        yield "Why a goal was missed:\n\n" + "\n".join(f"- {why[0].upper()}{why[1:]}." for why in missed)
    for part, section in (
        ("calls", calls), ("sampling", sampling), ("peers", peers), ("growth", growth), ("startup", startup),
    ):  # fmt: skip
        yield section(found[part]) if part in found else f"`python -m benchmarks {part}` has not been run."


def head(found: Found) -> str:
    parts = sorted(found)
    where = [machine(found[part]["machine"]) for part in parts]
    told = list(dict.fromkeys(where))
    which = told[0] if len(told) == 1 else "\n".join(f"- {p}: {w}" for p, w in zip(parts, where, strict=True))
    quick = " **A smoke run (`--quick`): its figures mean nothing.**" if any(found[p]["quick"] for p in parts) else ""
    return f"""# What measuring costs

Made by `python -m benchmarks`, part by part and some parts in pieces, from the results in `docs/performance/`; nothing
on this page is typed by hand but the explanations.{quick}

{which}

Every figure is a ratio of two medians. The contenders take turns in one process, round by round and in any order, so
that a slow moment hits all alike. On one thread it is the processor's time of the process that counts, as other
programs then take none of it; on several, and at start-up, it is the time on the clock. Memory is the rise of a
process's peak, in a process for each contender, taking turns too; glibc then gives every larger block back at once,
and while times are taken it keeps what it has (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`)."""


def machine(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    kernels = " and ".join(facts["kernels"]) or "no compiled kernel"
    gpu = facts["gpu"] or "no GPU"
    return (
        f"{facts['processor']}, {facts['cores']} cores, torch on {facts['threads']} threads, "
        f"{' '.join(facts['instructions'])}; {gpu}; {kernels}; {versions}."
    )


def goals_of(found: Found) -> Iterator[Goal]:
    if "calls" in found:
        base = {case["tokens"]: case for case in found["calls"]["cases"] if is_base(case)}
        exact = [ratio(base[n]["seconds"], "flash", "attention") for n in base if 256 <= n <= 2**14]
        yield Goal("exact entropy / one attention call, N = 256 to 16,384", "≤ 1.05", span(exact), max(exact) <= 1.05)
        whole = [
            ratio(base[n]["seconds"], "softmax, then sum", "flash")
            for n in base
            if n >= 256 and "softmax, then sum" in base[n]["seconds"]
        ]
        yield Goal("softmax, then sum / exact entropy, N from 256", "≥ 5", span(whole), min(whole) >= 5)
        if 2**14 in base:
            memory = median(base[2**14]["memory"]["flash"]) / operands(base[2**14])
            yield Goal("extra memory at N = 16,384, of q + k", "≤ 2", f"{memory:.2f}", memory <= 2)
            growth = ratio(base[2**14]["seconds"], "flash", "attention") / ratio(
                base[2**10]["seconds"], "flash", "attention"
            )
            yield Goal("growth of the ratio, N = 1,024 to 16,384", "≤ 1.10", f"{growth:.2f}", growth <= 1.1)
    for tokens, way, name, most in (
        (1024, "self", "sampling, all self-attention exact / plain, N = 1,024", 1.10),
        (4096, "self", "sampling, all self-attention exact / plain, N = 4,096", 1.30),
        (4096, SAMPLED_SELF, f"sampling, {ROWS_WHILE_SAMPLING} rows of all self-attention / plain, N = 4,096", 1.03),
    ):
        cases = [case for case in found.get("sampling", {"cases": ()})["cases"] if case["tokens"] == tokens]
        values = [ratio(case["seconds"], way, "plain") for case in cases]
        told = ", ".join(f"{v:.2f} ({MODELS[case['model']]})" for v, case in zip(values, cases, strict=True))
        if cases:
            yield Goal(name, f"≤ {most:.2f}", told, max(values) <= most)
    for case in found.get("peers", {"cases": ()})["cases"]:
        if case["peer"] == "attention-map-diffusers" and "seconds" in case:
            where = f"{MODELS[case['model']]}, N = {case['tokens']:,}"
            times = ratio(case["seconds"], "peer", "ours")
            yield Goal(f"attention-map-diffusers / ours, time, {where}", "≥ 5", f"{times:.1f}", times >= 5)
            theirs, own = extra(case["memory"], "peer"), extra(case["memory"], "ours")
            times = theirs / max(own, FINEST)
            told = f"{theirs:,.0f} MiB against {own:.1f} MiB"
            yield Goal(f"attention-map-diffusers / ours, extra memory, {where}", "≥ 100", told, times >= 100)
    if "startup" in found:
        seconds = median(found["startup"]["seconds"]["entropy-probe --help"])
        yield Goal("`entropy-probe --help`, seconds", "≤ 0.5", f"{seconds:.2f}", seconds <= 0.5)


def calls(found: dict[str, Any]) -> str:
    on_cpu = [case for case in found["cases"] if case["device"] == "cpu"]
    on_cuda = [case for case in found["cases"] if case["device"] == "cuda"]
    base = [case for case in on_cpu if is_base(case)]
    turned = [case for case in on_cpu if not is_base(case)]
    cuda = (
        "On CUDA, in bfloat16, `flash` is the fused Triton kernel:\n\n" + times_of_calls(on_cuda, CALLS)
        + "\n\n" + memory_of_calls(on_cuda)
        if on_cuda
        else "No GPU was at hand: there are no CUDA columns, and the fused Triton kernel has no figure. On a machine "
        "with one, `python -m benchmarks calls` measures both."
    )  # fmt: skip
    curve = (
        "\n\nThe curve H(g): the statistics under several scale factors at once, as a multiple of one:\n\n"
        + curves_of(found["curves"])
        if "curves" in found
        else ""
    )
    return f"""## One call

Time of the statistics of all rows, as a multiple of one `scaled_dot_product_attention` on the same tensors (batch 1,
8 heads, width 64, float32). `flash` is what captures use, also without its compiled kernel; with {ROWS:,} rows, these
are stratified. "Softmax, then sum" makes the whole map in float32, "chunked" {ROWS:,} of its rows at a time, and
`dense` is the definition in float64. Left out: maps of more than {LARGEST // 2**30} GiB, and calls of minutes.

{times_of_calls(base, CALLS)}

Other shapes, one value changed at a time; half precision is computed in float32. 65,536 tokens with one head, so that
a call takes seconds:

{times_of_calls(turned, CALLS)}

What softmax-then-sum is made of, each operation as a multiple of `flash`, which takes about as long as the matrix
product alone:

{pieces_of_softmax(found["pieces"])}{curve}

Extra memory of one call, MiB, beside the query, key and value that it is given:

{memory_of_calls(base)}

{cuda}"""


def times_of_calls(cases: Sequence[dict[str, Any]], ways: Sequence[str]) -> str:
    rows = []
    for case in cases:
        seconds = case["seconds"]
        cells = [times(ratio(seconds, way, "attention")) if way in seconds else "" for way in ways]
        shape = [f"{case['tokens']:,}", case["heads"], case["width"], case["dtype"]]
        rows.append([*shape, shown(median(seconds["attention"])), *cells, len(seconds["attention"])])
    return table(("tokens", "heads", "width", "dtype", "attention", *ways, "rounds"), rows)


def pieces_of_softmax(cases: Sequence[dict[str, Any]]) -> str:
    names = [name for name in cases[0]["seconds"] if name != "flash"]
    rows = [
        [f"{case['tokens']:,}", *(times(ratio(case["seconds"], name, "flash")) for name in names)] for case in cases
    ]
    return table(("tokens", *names), rows)


def curves_of(cases: Sequence[dict[str, Any]]) -> str:
    counts = [count for count in cases[0]["seconds"] if count != "1"]
    rows = [[f"{case['tokens']:,}", *(times(ratio(case["seconds"], count, "1")) for count in counts)] for case in cases]
    return table(("tokens", *(f"{count} scale_factors" for count in counts)), rows)


def memory_of_calls(cases: Iterable[dict[str, Any]]) -> str:
    measured = [case for case in cases if case["memory"]]
    rows = [
        [f"{case['tokens']:,}", f"{operands(case):.1f}"]
        + [f"{median(case['memory'][way]):,.1f}" if way in case["memory"] else "" for way in ("attention", *CALLS)]
        for case in measured
    ]
    return table(("tokens", "q + k", "attention", *CALLS), rows)


def sampling(found: dict[str, Any]) -> str:
    rows, sizes, inside = [], [], []
    ways = [way for way in WAYS if any(way in case["seconds"] for case in found["cases"])]
    auto = (
        " `auto`, the default, measures all rows up to 1,024 tokens; beyond, as many as keep the standard error of a "
        "layer's mean under 0.01 nats, which in so few steps are more than in a usual sampling."
        if "self, auto" in ways
        else ""
    )
    for case in found["cases"]:
        shape = [MODELS[case["model"]], f"{case['size']} px", f"{case['tokens']:,}", case["images"], case["steps"]]
        seconds = case["seconds"]
        ratios = [times(ratio(seconds, way, "plain")) if way in seconds else "" for way in ways]
        rows.append([*shape, shown(median(seconds["plain"])), *ratios, len(seconds["plain"])])
        plain = median(case["memory"]["plain"])
        sizes.append(
            [*shape[:3], f"{plain:,.0f}", *(f"{median(case['memory'][way]) - plain:+,.1f}" for way in REMEMBERED)]
        )
        for way, part in case["profile"].items():
            around = part["measuring"] - part["kernel"]
            shares = (part["opening"], part["measuring"], part["kernel"], around)
            inside.append([*shape[:3], way, *(f"{100 * share / part['whole']:.1f} %" for share in shares)])
    return f"""## One sampling

Time of sampling a batch with guidance, as a multiple of the same without capturing. N is the number of tokens of the
finest self-attention. The UNet of SD 1.5's layout has half the channels and half the heads of the real one, and
random weights: the attention, and measuring it, are half of the real one's and everything else a quarter, so that its
ratios are higher than those of the real one.{auto}

{table(("model", "size", "N", "images", "steps", "plain", *ways, "rounds"), rows)}

Memory, MiB: what plain sampling takes at its peak beside the model, and what comes on top of it. Differences of about
{FINEST:.0f} MiB, of either sign, are the same as none.

{table(("model", "size", "N", "plain", *REMEMBERED), sizes)}

Where the time goes, as cProfile has it, in shares of the whole sampling: opening and closing the capture, which walks
through the modules and comes once a sampling however many steps it has; and measuring, in the kernel and around it (the
profiler itself adds to what is Python):

{table(("model", "size", "N", "captured", "opening", "measuring", "of it kernel", "of it around"), inside)}"""


def peers(found: dict[str, Any]) -> str:
    rows, failed, apart = [], [], 0.0
    for case in found["cases"]:
        name = f"{case['peer']} ({case['remark']})" if case["remark"] else case["peer"]
        where = [name, MODELS[case["model"]], f"{case['tokens']:,}"]
        if "error" in case:
            failed.append([*where, "`" + case["error"].replace("`", "'").replace("|", "\\|") + "`"])
            continue
        seconds, memory = case["seconds"], case["memory"]
        relative = [times(ratio(seconds, *pair)) for pair in (("peer", "ours"), ("peer", "plain"), ("ours", "plain"))]
        theirs, own = extra(memory, "peer"), extra(memory, "ours")
        rows.append([*where, *relative, f"{theirs:,.0f}", f"{own:.1f}", len(seconds["peer"])])
        if case["entropy"]["peer"] is not None:
            apart = max(apart, abs(case["entropy"]["peer"] - case["entropy"]["ours"]))
    columns = ("peer", "model", "N", "peer / ours", "peer / plain", "ours / plain", "peer, MiB", "ours, MiB", "rounds")
    could_not = (
        "Could not be run, with the error:\n\n" + table(("peer", "model", "N", "error"), failed) if failed else ""
    )
    return f"""## Others, on the same pipeline

The entropy of every self-attention of a whole sampling of one image with guidance, for every layer, head and step,
from the first step to the finished numbers (ours: `capture` and `frame()`). Memory is what comes on top of plain
sampling. Those that are installed have environments of their own above the one of the benchmarks.
attention-map-diffusers is asked for `image->image`, all timesteps and heads, and the entropy is taken of its maps;
the storing processor is the plain eager one that keeps its probabilities; nnsight keeps the queries' and keys'
projections of a trace.

{table(columns, rows)}

The mean entropies found by those and by us differ by at most {apart:.1g} nats.

{could_not}"""


def growth(found: dict[str, Any]) -> str:
    layers, steps = (
        [
            [
                case[key], shown(median(case["seconds"]["plain"])), times(ratio(case["seconds"], "captured", "plain")),
                f"{extra(case['memory'], 'captured'):+.1f}", len(case["seconds"]["plain"]),
            ]
            for case in found[key]
        ]
        for key in ("layers", "steps")
    )  # fmt: skip
    reports = [
        [
            f"{case['records']:,}", f"{case['cells']:,}", f"{case['records'] / case['writing']:,.0f}",
            case.get("error") or f"{case['seconds']:.0f} s", f"{case['memory']:,}" if "memory" in case else "",
        ]
        for case in found["records"]["reports"]
    ]  # fmt: skip
    columns = ("plain", "captured / plain", "extra MiB", "rounds")
    return f"""## How it grows

With the number of tokens: the ratios of the tables above.

With the number of layers, a stack of small attention layers (256 tokens, 8 heads of width 32, batch 2), all captured:

{table(("layers", *columns), layers)}

With the number of steps, one image of the bundled UNet at 64 px, all self-attention captured (memory beside a
sampling of one step):

{table(("steps", *columns), steps)}

With the number of records: cells are written with their checksums, one by one, and a report (fit, figures, tables,
`records.parquet`) is made of the finished run in a process of its own. A million records take
{found["records"]["bytes"]:.1f} MB on disk.

{table(("records", "cells", "written a second", "report", "its memory, MiB"), reports)}"""


def startup(found: dict[str, Any]) -> str:
    nothing = found["seconds"]["python -c pass"]
    rows = [
        [f"`{name}`", shown(median(seconds)), times(median(seconds) / median(nothing)), len(seconds)]
        for name, seconds in found["seconds"].items()
    ]
    libraries = [[f"`{name}`", ", ".join(names) or "none"] for name, names in found["loaded"].items()]
    return f"""## Start-up

{table(("command", "time", "of Python's own", "rounds"), rows)}

What of the larger libraries is imported then; a capture needs no plotting:

{table(("after", "imported"), libraries)}"""


def is_base(case: dict[str, Any]) -> bool:
    return (case["heads"], case["width"], case["dtype"], case["device"]) == (8, 64, "float32", "cpu")


def operands(case: dict[str, Any]) -> float:
    """MiB of query and key."""
    size = {"float32": 4, "bfloat16": 2}[case["dtype"]]
    return 2 * size * case["tokens"] * case["heads"] * case["width"] / 2**20


def extra(memory: dict[str, list[float]], name: str) -> float:
    """MiB above plain."""
    return median(memory[name]) - median(memory["plain"])


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def times(value: float) -> str:
    """A ratio, to about three digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1))))}f}x"


def shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
