"""Time and memory of the statistics of one call, relative to one attention call, in half precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.calls import WAYS, Case, memory, times
from benchmarks.gpu.setting import Setting, measure_cases


def cases(device: str, quick: bool) -> list[Case]:
    sizes = (64,) if quick else (4_096, 1_024, 16_384, 256, 65_536)
    base = [Case(tokens, dtype="bfloat16", device=device) for tokens in sizes]
    others = [] if quick else [Case(4_096, heads=10), Case(4_096, heads=24, width=128), Case(4_096, dtype="float32")]
    return base + [
        replace(case, device=device, dtype="float32" if case == others[-1] else "bfloat16") for case in others
    ]


def run(setting: Setting) -> dict[str, Any]:
    def measure(case: Case) -> dict[str, Any]:
        seconds = times(case, 0.1 if setting.quick else 3)
        names = [name for name in ("attention", *WAYS) if name in seconds] if setting.device == "cuda" else []
        return {"seconds": seconds, "memory": {name: [memory(name, case)] for name in names}}

    return measure_cases(cases(setting.device, setting.quick), measure, setting)
