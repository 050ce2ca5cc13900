"""Shared by all benchmarks: timing in rounds, peak memory in new processes, the machine, results."""

from __future__ import annotations

import gc
import json
import multiprocessing
import multiprocessing.forkserver
import os
import pkgutil
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

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
"""Settings with which glibc keeps freed memory.

By default it may return memory after a call and request it again in the next one. Whether it does depends on the layout
of the heap, and changes the time of the same sampling run by up to a quarter."""

RETURN_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**17), "MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""Settings with which glibc returns large blocks at once: the peak of a process is then the peak of its tensors."""

T = TypeVar("T")

Runs = dict[str, list[float]]
"""Measurements by contender, in the order of the rounds."""


def restart_with_steady_memory() -> None:
    """Restart this process with the settings `KEEP_MEMORY`, unless it has them."""
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, os.environ | KEEP_MEMORY)


def time_in_rounds(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    least: int = 3,
    most: int = 51,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] | None = None,
) -> Runs:
    """Return the seconds of each contender.

    Every round runs all contenders once, in random order: a slow moment of the machine then affects all of them.

    Args:
        contenders: functions to time.
        seconds: no round starts after this time, except the first `least` ones.
        least: minimum number of rounds, after one warm-up round.
        most: maximum number of rounds.
        wait: waits until the device has finished its work.
        clock: returns seconds; `default_clock()` if None.
    """
    clock = clock or default_clock()
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
            times[name].append(four_digits(clock() - start))
    return times


def default_clock() -> Callable[[], float]:
    """Return the clock of CPU time if torch has one thread, as other programs do not affect it, else of wall time."""
    import torch

    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def peak_memory(work: Callable[[], object]) -> float:
    """Return the maximum rise of the memory of this process during `work`, in MiB. Linux only."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _memory("VmRSS")
    result = work()  # counts towards the peak
    rise = _memory("VmHWM") - before
    del result
    return rise


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def call_in_interpreter(
    function: Callable[..., Any],
    *arguments: object,
    python: str | Path = sys.executable,
    timeout: float | None = None,
) -> Any:
    """Call a function of a module in a new process of any interpreter, and return its result.

    Args:
        function: of a module; its result must be JSON.
        arguments: must be JSON.
        python: the interpreter.
        timeout: in seconds.

    Raises:
        RuntimeError: with the last line of the error output, if the process fails or takes longer than `timeout`.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    command = [str(python), "-m", "benchmarks.measure", name, json.dumps(arguments)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"not done within {late.timeout:.0f} seconds") from None
    if done.returncode:
        errors = done.stderr.strip().splitlines()
        raise RuntimeError(errors[-1] if errors else f"exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def call_in_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a new process with the settings `RETURN_MEMORY`, and return its result."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    with patch.dict(os.environ, RETURN_MEMORY):
        multiprocessing.forkserver.ensure_running()
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(function, *arguments).result()


def measure_in_rounds(contenders: Mapping[str, Callable[[], float]], repeats: int) -> Runs:
    """Return the values that each contender returns, called in turns."""
    values: Runs = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            values[name].append(round(call(), 2))
    return values


def ratio(runs: Runs, of: str, to: str) -> float:
    """Return the ratio of two medians."""
    return statistics.median(runs[of]) / statistics.median(runs[to])


def four_digits(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def machine() -> dict[str, Any]:
    """Return the processor, versions and other facts on which the results depend."""
    import torch

    from entropy_probe import __version__
    from entropy_probe.statistics import cpu

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    shown = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
    libraries = ("torch", "diffusers", "transformers", "numpy")
    return {
        "processor": facts.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in shown if flag in facts.get("flags", "").split()],
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": list(cpu.KERNELS),
        "versions": {"python": platform.python_version(), "entropy-probe": __version__}
        | {name: version(name) for name in libraries},
    }


def save(part: str, folder: Path, results: Mapping[str, Any]) -> None:
    """Write the results of a part with the machine and the command, and print the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.json"
    command = f"python -m benchmarks {part}"
    path.write_text(json.dumps({"command": command, "machine": machine(), **results}, indent=1) + "\n")
    print(f"{path}", flush=True)


if __name__ == "__main__":
    print(json.dumps(pkgutil.resolve_name(sys.argv[1])(*json.loads(sys.argv[2]))))
