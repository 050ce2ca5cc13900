"""What capturing every attention layer costs while a pipeline samples: `python benchmarks/bench_capture.py`."""

import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from entropy_probe.capture import capture
from entropy_probe.pipelines import draw, load, quiet_libraries
from entropy_probe.reference import prompts

STEADY = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
"""Makes glibc keep the memory that it has: whether it gives it back after a call, to take it again in the next, depends
on what happens to lie on top of its heap, and decides over a quarter of the time of the very same sampling."""

IMAGES = 8
"""In a batch, as a sweep samples them at the training size."""

ONLY_LIVE = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""Makes glibc give every larger block back at once, so that the peak of a process is that of its tensors."""


def sample(pipeline: object, size: int, steps: int) -> float:
    """Seconds of one sampling of a batch of images."""
    start = time.perf_counter()
    draw(pipeline, prompts()[:IMAGES], (size, size), list(range(IMAGES)), steps=steps, guidance_scale=4.0)
    return time.perf_counter() - start


def peak(model: str, size: int, steps: int, captured: bool) -> float:
    """Peak memory of a process that samples twice, MiB."""
    command = [sys.executable, __file__, "--model", model, "--one", str(size), "--steps", str(steps)]
    command += ["--captured"] if captured else []
    env = os.environ | STEADY | ONLY_LIVE
    return float(subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, env=env))


def main(
    model: Annotated[str, typer.Option(help="Hub id, folder or `reference`.")] = "reference",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 10,
    repeats: Annotated[int, typer.Option(help="Timed samplings of each kind.")] = 9,
    one: Annotated[int, typer.Option(hidden=True)] = 0,
    captured: Annotated[bool, typer.Option("--captured", hidden=True)] = False,
) -> None:
    """Print the ratio of sampling with all layers captured exactly to plain sampling, in turns in one run."""
    if not STEADY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | STEADY)
    quiet_libraries()
    pipeline = load(model, device="cpu")
    if one:
        for _ in range(2):
            if captured:
                with capture(pipeline):
                    sample(pipeline, one, steps)
            else:
                sample(pipeline, one, steps)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    table = Table("size", "plain, s", "captured", "captured without distance", "more memory, MiB", "repeats")
    for size in (64, 128):
        times: dict[str, list[float]] = {"plain": [], "all": [], "entropy": []}
        sample(pipeline, size, steps)
        for _ in range(repeats):
            times["plain"].append(sample(pipeline, size, steps))
            with capture(pipeline):
                times["all"].append(sample(pipeline, size, steps))
            with capture(pipeline, distance=False):
                times["entropy"].append(sample(pipeline, size, steps))
        middle = {name: statistics.median(values) for name, values in times.items()}
        more = peak(model, size, steps, True) - peak(model, size, steps, False)
        ratios = [f"{middle[name] / middle['plain']:.3f}x" for name in ("all", "entropy")]
        table.add_row(str(size), f"{middle['plain']:.2f}", *ratios, f"{more:+.0f}", str(repeats))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
