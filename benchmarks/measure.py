"""What every part of the suite shares: contenders in turns, memory in processes of their own, the machine, results."""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "performance"

STEADY = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
"""Makes glibc keep the memory that it has: whether it gives it back after a call, to take it again in the next, depends
on what happens to lie on top of its heap, and decides over a quarter of the time of the very same sampling."""

ONLY_LIVE = {"MALLOC_TRIM_THRESHOLD_": str(2**17), "MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""Makes glibc give every larger block back at once, so that the peak of a process is that of its tensors."""

T = TypeVar("T")

Runs = dict[str, list[float]]
"""What was measured of each contender, in the order of the rounds."""


def steady() -> None:
    """Start this process again with `STEADY`, unless it has it."""
    if not STEADY.keys() <= os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, os.environ | STEADY)


def in_turns(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    least: int = 3,
    most: int = 51,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] | None = None,
) -> Runs:
    """Seconds of each, in rounds in which all take their turn, in any order, so that a slow moment hits all alike.

    Args:
        contenders: what is measured.
        seconds: after which no further round begins, once there were `least`.
        least: rounds, after one that is not counted.
        most: rounds.
        wait: until the device has done what it was given.
        clock: `own_clock` if none.
    """
    clock = clock or own_clock()
    order, shuffle = list(contenders), random.Random(0).shuffle
    times: Runs = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    began = time.perf_counter()
    for number in range(most):
        if number >= least and time.perf_counter() - began > seconds:
            break
        shuffle(order)
        for name in order:
            wait()
            start = clock()
            contenders[name]()
            wait()
            times[name].append(rounded(clock() - start))
    return times


def own_clock() -> Callable[[], float]:
    """Of the processor's time for this process, where torch has one thread: others then take none of it."""
    import torch

    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def peak(work: Callable[[], object]) -> float:
    """MiB by which the memory of this process rises at the most while it works; what is left of it counts. Linux."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = _memory("VmRSS")
    kept = work()
    rise = _memory("VmHWM") - before
    del kept
    return rise


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def elsewhere(
    function: str, *arguments: object, python: str | Path = sys.executable, patience: float | None = None
) -> Any:
    """What a function, `module:name`, of these benchmarks returns in another interpreter, with this environment.

    Args:
        function: its name.
        arguments: that JSON can tell.
        python: the interpreter.
        patience: seconds after which it is given up.

    Raises:
        RuntimeError: with the last line of what the process said, if it failed, or was given up.
    """
    command = [str(python), "-m", "benchmarks.measure", function, json.dumps(arguments)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=patience)
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"not done within {late.timeout:.0f} seconds") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def apart(function: Callable[..., T], *arguments: object) -> T:
    """What a function returns in a process of its own, under `ONLY_LIVE`, that has imported and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    with patch.dict(os.environ, ONLY_LIVE):
        multiprocessing.forkserver.ensure_running()
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as process:
        return process.submit(function, *arguments).result()


def told_in_turns(contenders: Mapping[str, Callable[[], float]], repeats: int) -> Runs:
    """What each tells of itself, in rounds in which all take their turn: memory, in a process of its own."""
    found: Runs = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            found[name].append(round(call(), 2))
    return found


def ratio(runs: Runs, of: str, to: str) -> float:
    """The ratio of two medians."""
    return statistics.median(runs[of]) / statistics.median(runs[to])


def rounded(value: float) -> float:
    """To four digits, as results are kept."""
    return float(f"{value:.4g}")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
    libraries = ("entropy-probe", "torch", "diffusers", "transformers", "numpy")
    return {
        "processor": facts.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in wanted if flag in facts.get("flags", "").split()],
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": list(importlib.import_module("entropy_probe.statistics.cpu").KERNELS),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
    }


def save(part: str, folder: Path, found: Mapping[str, Any]) -> None:
    """Keep the results of a part, with the machine and the command, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.json"
    command = f"python -m benchmarks {part}"
    path.write_text(json.dumps({"command": command, "machine": machine(), **found}, indent=1) + "\n")
    print(f"{path}", flush=True)


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(sys.argv[2]))))
