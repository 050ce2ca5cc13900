"""Run all parts, and store what each has found as soon as it has finished."""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import accuracy, call_times, images, marked_tests, sampling
from benchmarks.gpu.setting import Setting
from benchmarks.measure import machine
from entropy_probe.statistics.dispatch import WITHOUT_TRITON

Part = Callable[[Setting], dict[str, Any]]

PARTS: dict[str, tuple[Part, float]] = {
    "accuracy": (accuracy.run, 100),
    "images": (images.run, 60),
    "sampling": (sampling.run, 130),
    "calls": (call_times.run, 90),
    "tests": (marked_tests.run, 80),
}
"""The parts and their shares of the time, with the most important part first. Time that is left goes to the next."""


def run(
    device: str,
    folder: Path,
    *,
    quick: bool = False,
    minutes: float = 8.0,
    parts: Mapping[str, tuple[Part, float]] = PARTS,
) -> Path:
    """Run the parts, write `cuda-<name of the GPU>.json` after each, and return its path."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "gpu needs a CUDA device, and torch finds none; --device cpu --quick tries the command without"
        )
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cuda-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
    began = time.monotonic()
    end, shares = began + 60 * minutes, [share for _, share in parts.values()]
    results: dict[str, Any] = {"command": "python -m benchmarks gpu", "quick": quick, "machine": facts(device)}
    for number, (part, (measure, share)) in enumerate(parts.items()):
        now = time.monotonic()
        until = now + max(0.0, end - now) * share / sum(shares[number:])
        print(f"{part}: {until - now:.0f} s of {end - now:.0f} s", flush=True)
        try:
            found = measure(Setting(device, quick, until))
        except Exception as error:  # the other parts must still run
            traceback.print_exc()
            found = {"cases": [], "left_out": 0, "error": f"{type(error).__name__}: {error}"}
        results[part] = found | {"seconds taken": round(time.monotonic() - now, 1)}
        results["minutes"] = round((time.monotonic() - began) / 60, 1)
        results["triton"] = "failed" if WITHOUT_TRITON else "used" if device == "cuda" else "not used"
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)
    return path


def facts(device: str) -> dict[str, Any]:
    """Return the machine, with the GPU."""
    if device == "cpu":
        return machine()
    found = torch.cuda.get_device_properties(0)
    return machine() | {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "gpu_memory": round(found.total_memory / 2**30),
        "cuda": torch.version.cuda,
    }
