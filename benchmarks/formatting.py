"""Numbers and tables of docs/performance.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def is_default(case: dict[str, Any]) -> bool:
    """Return whether a case has the default shape, on the CPU."""
    return (case["heads"], case["width"], case["dtype"], case["device"]) == (8, 64, "float32", "cpu")


def operands(case: dict[str, Any]) -> float:
    """Return the size of query and key of a case, in MiB."""
    size = {"float32": 4, "bfloat16": 2}[case["dtype"]]
    return 2 * size * case["tokens"] * case["heads"] * case["width"] / 2**20


def extra(memory: dict[str, list[float]], name: str) -> float:
    """Return the peak memory in addition to plain sampling, in MiB."""
    return median(memory[name]) - median(memory["plain"])


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def multiple(value: float) -> str:
    """Format a ratio with about three digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1))))}f}x"


def duration(seconds: float) -> str:
    """Format a time."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
