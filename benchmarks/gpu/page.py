"""The CUDA section of docs/performance.md: one part for each GPU that was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.calls import WAYS
from benchmarks.formatting import duration, median, multiple, table
from benchmarks.gpu.sampling import WAYS as WAYS_OF_SAMPLING
from benchmarks.measure import ratio

NONE = (
    "No GPU was available, so nothing on CUDA was measured. On a machine with a GPU, `python -m benchmarks gpu` runs "
    "the tests marked `gpu`, compares the fused Triton kernel with the float64 definition, and checks that capturing "
    "leaves images bit-identical. It measures time and memory, and adds its tables here."
)


def section(results: Sequence[dict[str, Any]]) -> str:
    """Return the section on the results of `python -m benchmarks gpu`, as Markdown."""
    return "\n\n".join(["## CUDA", *(of_one_gpu(found) for found in results)] if results else ["## CUDA", NONE])


def of_one_gpu(found: dict[str, Any]) -> str:
    facts = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    quick = " **A smoke run (`--quick`): its numbers mean nothing.**" if found["quick"] else ""
    head = (
        f"### {facts['gpu'] or 'CPU, to try the command'}\n\n`{found['command']}` took {found['minutes']} minutes; the "
        f"Triton kernel was {found['triton']}; {versions}.{quick}"
    )
    parts = {"tests": tests, "accuracy": accuracy, "calls": calls, "sampling": sampling, "images": images}
    shown = (shown_part(part, found[part], show) for part, show in parts.items() if part in found)
    return "\n\n".join([head, *shown])


def shown_part(name: str, found: dict[str, Any], show: Callable[[dict[str, Any]], str]) -> str:
    return f"The part `{name}` failed: `{found['error']}`" if "error" in found else show(found)


def tests(found: dict[str, Any]) -> str:
    failed = "".join(f"\n- `{line}`" for line in found["failed"])
    if found["code"] is None:
        return f"The tests marked `gpu` were stopped when their time was over.{failed}"
    return f"The tests marked `gpu`: {found['summary'].strip('= ')}.{failed}"


def left_out(found: dict[str, Any]) -> str:
    """Return the errors of the cases, and how many were left out."""
    lines = []
    for case in found["cases"]:
        if "error" in case:
            fields = ", ".join(f"{name} {value}" for name, value in case.items() if name != "error" and value != "")
            lines.append(f"- failed: {fields}: `{case['error'].replace('`', chr(39))}`")
    if found["left_out"]:
        lines.append(f"- {found['left_out']} cases were left out, because the time was over")
    return "\n\n" + "\n".join(lines) if lines else ""


def done(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [case for case in found["cases"] if "error" not in case]


def accuracy(found: dict[str, Any]) -> str:
    rows = [
        [f"{case['tokens']:,}", case["width"], case["dtype"], case["mask"], f"{case['heads']}:{case['kv_heads']}",
         case["sharpness"], f"{case['entropy']:.1e}", f"{case['variance']:.1e}"]
        for case in done(found)
    ]  # fmt: skip
    columns = ("tokens", "width", "dtype", "mask", "heads", "sharpness", "entropy, nats", "logit variance, relative")
    return (
        "Maximum difference of the statistics from the float64 definition on the same inputs (batch 2, 128 rows of "
        f"each head; heads of queries : heads of keys):\n\n{table(columns, rows)}{left_out(found)}"
    )


def calls(found: dict[str, Any]) -> str:
    rows, sizes = [], []
    for case in done(found):
        seconds = case["seconds"]
        shape = [f"{case['tokens']:,}", case["heads"], case["width"], case["dtype"]]
        cells = [multiple(ratio(seconds, way, "attention")) if way in seconds else "" for way in WAYS]
        rows.append([*shape, duration(median(seconds["attention"])), *cells, len(seconds["attention"])])
        if case["memory"]:
            memory = case["memory"]
            sizes.append([*shape, *(f"{memory[way][0]:,.1f}" if way in memory else "" for way in ("attention", *WAYS))])
    columns = ("tokens", "heads", "width", "dtype")
    text = (
        "Time of the statistics of all rows, as a multiple of one `scaled_dot_product_attention` on the same tensors. "
        f"The goal is 0.6x from 4,096 tokens in bfloat16:\n\n{table((*columns, 'attention', *WAYS, 'rounds'), rows)}"
    )
    if sizes:
        text += f"\n\nExtra memory of one call, MiB:\n\n{table((*columns, 'attention', *WAYS), sizes)}"
    return text + left_out(found)


def sampling(found: dict[str, Any]) -> str:
    ways = [way for way in WAYS_OF_SAMPLING if way != "plain"]
    rows = []
    for case in done(found):
        seconds, memory = case["seconds"], case["memory"]
        shape = [case["layout"], f"{case['size']} px", case["steps"], duration(median(seconds["plain"]))]
        extra = [f"{memory[way][0] - memory['plain'][0]:+,.0f}" if memory else "" for way in ways]
        same = [way for way in ways if case["identical"][way] and way != "scaled"]
        identical = ", ".join(same) or "none"
        rows.append([*shape, *(multiple(ratio(seconds, way, "plain")) for way in ways), *extra, identical,
                     "yes" if case["deterministic"] else "no", len(seconds["plain"])])  # fmt: skip
    columns = ("layout", "size", "steps", "plain", *ways, *(f"{way}, MiB" for way in ways))
    return (
        "Sampling one image in the layouts of SDXL and Flux, with random weights, as a multiple of plain sampling, and "
        'extra peak memory. The goal is 1.05x. "Identical" lists the ways whose latents are bit-identical to plain '
        'sampling; "repeats" is whether plain sampling repeats its own latents:\n\n'
        f"{table((*columns, 'identical', 'repeats', 'rounds'), rows)}{left_out(found)}"
    )


def images(found: dict[str, Any]) -> str:
    cases = done(found)
    if not cases:
        return "Images of the bundled models: none." + left_out(found)
    shape = ("model", "dtype", "size")
    names = [name for name in cases[0] if name not in shape]
    rows = [[*(case[name] for name in shape), *(value(case[name]) for name in names)] for case in cases]
    return f"Images of the bundled models, two prompts:\n\n{table((*shape, *names), rows)}{left_out(found)}"


def value(found: bool | float) -> str:
    if isinstance(found, bool):
        return "yes" if found else "no"
    return f"{found:.1e}" if isinstance(found, float) else f"{found:,}"
