"""The sections of docs/performance.md, one for each part of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.calls import MAX_MAP_BYTES, ROWS, SAMPLED
from benchmarks.formatting import duration, extra, is_default, median, multiple, operands, table
from benchmarks.measure import ratio
from benchmarks.sampling import MEMORY_WAYS
from benchmarks.sampling import ROWS as ROWS_WHILE_SAMPLING
from benchmarks.training import EVERY, overhead

CALLS = ("flash", "flash, no kernel", SAMPLED, "chunked", "softmax, then sum", "dense")
SAMPLED_SELF = f"self, {ROWS_WHILE_SAMPLING} rows"
WAYS = ("self", "all layers", SAMPLED_SELF, f"all layers, {ROWS_WHILE_SAMPLING} rows", "self, auto", "all layers, auto")
"""Columns of the table of sampling times; a way without results has no column."""

MODELS = {"reference": "bundled UNet", "sd15": "SD 1.5's layout"}
MEMORY_NOISE = 1.0
"""MiB by which the memory of the same sampling run differs between processes."""


def calls(found: dict[str, Any]) -> str:
    base = [case for case in found["cases"] if is_default(case)]
    variants = [case for case in found["cases"] if not is_default(case)]
    curve = (
        "\n\nThe curve H(g): time of the statistics at several scale factors at once, as a multiple of one:\n\n"
        + curves_of(found["curves"])
        if "curves" in found
        else ""
    )
    return f"""## One call

Time of the statistics of all rows, as a multiple of one `scaled_dot_product_attention` on the same tensors (batch 1,
8 heads, width 64, float32). `capture` uses `flash`, here also without its compiled kernel, and with {ROWS:,} stratified
rows. "Softmax, then sum" computes the complete attention map in float32, "chunked" computes {ROWS:,} of its rows at a
time, and `dense` is the definition in float64. Skipped: maps of more than {MAX_MAP_BYTES // 2**30} GiB, and calls that
take minutes.

{times_of_calls(base, CALLS)}

Other shapes, with one value changed; half precision is computed in float32. 65,536 tokens with one head only, to keep
the time of a call to seconds:

{times_of_calls(variants, CALLS)}

The individual operations of softmax-then-sum, each as a multiple of `flash`, which takes about as long as the matrix
product alone:

{pieces_of_softmax(found["pieces"])}{curve}

Memory of one call in addition to its query, key and value, MiB:

{memory_of_calls(base)}"""


def times_of_calls(cases: Sequence[dict[str, Any]], ways: Sequence[str]) -> str:
    rows = []
    for case in cases:
        seconds = case["seconds"]
        cells = [multiple(ratio(seconds, way, "attention")) if way in seconds else "" for way in ways]
        shape = [f"{case['tokens']:,}", case["heads"], case["width"], case["dtype"]]
        rows.append([*shape, duration(median(seconds["attention"])), *cells, len(seconds["attention"])])
    return table(("tokens", "heads", "width", "dtype", "attention", *ways, "rounds"), rows)


def pieces_of_softmax(cases: Sequence[dict[str, Any]]) -> str:
    names = [name for name in cases[0]["seconds"] if name != "flash"]
    rows = [
        [f"{case['tokens']:,}", *(multiple(ratio(case["seconds"], name, "flash")) for name in names)] for case in cases
    ]
    return table(("tokens", *names), rows)


def curves_of(cases: Sequence[dict[str, Any]]) -> str:
    counts = [count for count in cases[0]["seconds"] if count != "1"]
    rows = [
        [f"{case['tokens']:,}", *(multiple(ratio(case["seconds"], count, "1")) for count in counts)] for case in cases
    ]
    return table(("tokens", *(f"{count} scale factors" for count in counts)), rows)


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
        " `auto`, the default, measures all rows up to 1,024 tokens. Beyond, it samples enough rows for a standard "
        "error below 0.01 nats of a layer's mean, which with few steps are more rows than usual."
        if "self, auto" in ways
        else ""
    )
    for case in found["cases"]:
        shape = [MODELS[case["model"]], f"{case['size']} px", f"{case['tokens']:,}", case["images"], case["steps"]]
        seconds = case["seconds"]
        ratios = [multiple(ratio(seconds, way, "plain")) if way in seconds else "" for way in ways]
        rows.append([*shape, duration(median(seconds["plain"])), *ratios, len(seconds["plain"])])
        plain = median(case["memory"]["plain"])
        sizes.append(
            [*shape[:3], f"{plain:,.0f}", *(f"{median(case['memory'][way]) - plain:+,.1f}" for way in MEMORY_WAYS)]
        )
        for way, part in case["profile"].items():
            around = part["measuring"] - part["kernel"]
            shares = (part["opening"], part["measuring"], part["kernel"], around)
            inside.append([*shape[:3], way, *(f"{100 * share / part['whole']:.1f} %" for share in shares)])
    return f"""## One sampling

Time of sampling a batch with guidance under `capture`, as a multiple of plain sampling. N is the number of tokens of
the finest self-attention. The UNet with SD 1.5's layout has random weights and half the channels and heads of the real
one. Its attention, and measuring it, cost half as much, and everything else a quarter, so its ratios are higher than
the ratios of the real model.{auto}

{table(("model", "size", "N", "images", "steps", "plain", *ways, "rounds"), rows)}

Peak memory of plain sampling in addition to the model, and the extra memory under `capture`, MiB. Differences of about
{MEMORY_NOISE:.0f} MiB are noise.

{table(("model", "size", "N", "plain", *MEMORY_WAYS), sizes)}

Parts of the sampling time, measured by cProfile: opening and closing the capture, once per sampling run; and measuring,
in the kernel and around it. The profiler adds to the time of Python code:

{table(("model", "size", "N", "captured", "opening", "measuring", "in the kernel", "around it"), inside)}"""


def training(found: dict[str, Any]) -> str:
    rows = []
    for case in found["cases"]:
        seconds = case["seconds"]
        rows.append(
            [MODELS[case["model"]], f"{case['size']} px", case["batch"], duration(median(seconds["plain"])),
             multiple(ratio(seconds, "measured", "plain")), f"{1e6 * case['context']:.1f} µs",
             f"{100 * overhead(case) - 100:+.3f} %", len(seconds["plain"])]
        )  # fmt: skip
    columns = ("model", "size", "batch", "plain step", "measured step", "other steps", f"{EVERY} steps", "rounds")
    return f"""## Training

Time of a training step (forward, backward, AdamW) that `EntropyMonitor` measures, as a multiple of a plain step; the
time that its context adds to the other steps; and the overhead of {EVERY} steps with one measured step.

{table(columns, rows)}"""


def peers(found: dict[str, Any]) -> str:
    rows, failed, difference = [], [], 0.0
    for case in found["cases"]:
        name = f"{case['peer']} ({case['remark']})" if case["remark"] else case["peer"]
        where = [name, MODELS[case["model"]], f"{case['tokens']:,}"]
        if "error" in case:
            failed.append([*where, "`" + case["error"].replace("`", "'").replace("|", "\\|") + "`"])
            continue
        seconds, memory = case["seconds"], case["memory"]
        relative = [
            multiple(ratio(seconds, *pair)) for pair in (("peer", "ours"), ("peer", "plain"), ("ours", "plain"))
        ]
        theirs, own = extra(memory, "peer"), extra(memory, "ours")
        rows.append([*where, *relative, f"{theirs:,.0f}", f"{own:.1f}", len(seconds["peer"])])
        if case["entropy"]["peer"] is not None:
            difference = max(difference, abs(case["entropy"]["peer"] - case["entropy"]["ours"]))
    columns = ("peer", "model", "N", "peer / ours", "peer / plain", "ours / plain", "peer, MiB", "ours, MiB", "rounds")
    errors = ""
    if failed:
        errors = "Tools that could not be run, with their error:\n\n" + table(("peer", "model", "N", "error"), failed)
    return f"""## Other tools, on the same pipeline

The task is the entropy of all self-attention by layer, head and step, for one image sampled with guidance. The time is
from the first step to the finished numbers (ours: `capture` and `frame()`). Memory is in addition to plain sampling.
attention-map-diffusers computes its maps `image->image` for all timesteps and heads, from which we compute the entropy.
The storing processor is the eager attention processor, which stores its probabilities. nnsight stores the projected
queries and keys of a trace.

{table(columns, rows)}

Our mean entropies differ from the results of the other tools by at most {difference:.1g} nats.

{errors}"""


def _growth_row(case: dict[str, Any], count: int) -> list[object]:
    seconds = case["seconds"]
    captured = multiple(ratio(seconds, "captured", "plain"))
    memory = f"{extra(case['memory'], 'captured'):+.1f}"
    return [count, duration(median(seconds["plain"])), captured, memory, len(seconds["plain"])]


def growth(found: dict[str, Any]) -> str:
    layers, steps = ([_growth_row(case, case[key]) for case in found[key]] for key in ("layers", "steps"))
    reports = [
        [
            f"{case['records']:,}", f"{case['cells']:,}", f"{case['records'] / case['writing']:,.0f}",
            case.get("error") or f"{case['seconds']:.0f} s", f"{case['memory']:,}" if "memory" in case else "",
        ]
        for case in found["records"]["reports"]
    ]  # fmt: skip
    columns = ("plain", "captured / plain", "extra MiB", "rounds")
    return f"""## Growth

With the number of tokens: see the tables above.

With the number of layers: a sequence of small attention layers (256 tokens, 8 heads of width 32, batch 2), captured:

{table(("layers", *columns), layers)}

With the number of steps: one image of the bundled UNet at 64 px, all self-attention captured (memory in addition to a
sampling run of one step):

{table(("steps", *columns), steps)}

With the number of records: cells are written one by one with their checksums. A new process then writes the report of
the run (fit, figures, tables, `records.parquet`). A million records take {found["records"]["bytes"]:.1f} MB on disk.

{table(("records", "cells", "records written per second", "report", "memory of the report, MiB"), reports)}"""


def startup(found: dict[str, Any]) -> str:
    python = found["seconds"]["python -c pass"]
    rows = [
        [f"`{name}`", duration(median(seconds)), multiple(median(seconds) / median(python)), len(seconds)]
        for name, seconds in found["seconds"].items()
    ]
    libraries = [[f"`{name}`", ", ".join(names) or "none"] for name, names in found["loaded"].items()]
    return f"""## Start-up

{table(("command", "time", "relative to Python", "rounds"), rows)}

Large libraries that are imported; `capture` does not import plotting libraries:

{table(("after", "imported"), libraries)}"""
