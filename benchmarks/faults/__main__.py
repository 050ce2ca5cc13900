"""Count what a run directory loses to kills, full disks, damage and lack of memory, each done for real.

python -m benchmarks.faults --kills 200 --out docs/reliability.md
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from benchmarks.endurance import Endurance, measure_sweeps, section
from benchmarks.faults.cluster import on_ray
from benchmarks.faults.kills import (
    STAGES,
    interrupted_at_random,
    killed_at_changes,
    killed_at_random,
    peer_killed,
    stage_killed,
)
from benchmarks.faults.storage import (
    clock_set_back,
    damaged,
    disk_full,
    file_too_large,
    flip_bit,
    out_of_memory,
    read_only,
    truncate,
)
from benchmarks.faults.trial import GRID, Fault, Trial, log
from benchmarks.json_edits import HEADING
from entropy_probe.models import load
from entropy_probe.runs import sweep
from entropy_probe.runs.environment import hardware, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reference", help="name or folder of the model")
    parser.add_argument("--kills", type=int, default=200, help="number of kills at random moments")
    parser.add_argument("--times", type=int, default=20, help="number of trials of each other fault")
    parser.add_argument("--stride", type=int, default=1, help="kill before every STRIDE-th change of a file")
    parser.add_argument("--ray", type=int, default=10, help="number of trials of each fault of a Ray cluster")
    parser.add_argument(
        "--cells", type=int, default=1000, help="cells of the sweep whose memory is measured; 0 to skip it"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--out", type=Path, help="path of the page; without it, print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with more threads cannot be forked safely
    pipeline = load(options.model, device="cpu")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        reference = Path(name) / "reference"
        sweep(pipeline, store=Path(name) / "warm", model="model", **GRID)
        before = time.monotonic()
        sweep(pipeline, store=reference, model="model", **GRID)
        trial = Trial(pipeline, reference, time.monotonic() - before, random.Random(options.seed))
        faults = list(run_faults(trial, Path(name), options.kills, options.times, options.stride))
        long = measure_sweeps(pipeline, options.cells, Path(name)) if options.cells else None
        if options.ray:  # last: with Ray the process has threads
            faults += on_ray(trial, Path(name), options.ray)
    if options.out:
        before = options.out.read_text() if options.out.exists() else ""
        edits = before[before.index(HEADING) :] if HEADING in before else ""  # `benchmarks.json_edits` writes it
        options.out.write_text(page(faults, long, options, trial.seconds, time.monotonic() - began, edits))
    else:
        print(json.dumps([asdict(fault) for fault in faults]))


def run_faults(trial: Trial, folder: Path, kills: int, times: int, stride: int) -> Iterator[Fault]:
    """Run every fault that needs no cluster, each in a separate folder."""
    flipped, truncated = partial(flip_bit, choice=trial.random), partial(truncate, choice=trial.random)
    mounts = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
    faults: list[Callable[[Path], Fault]] = [
        lambda f: killed_at_random(trial, f, kills),
        lambda f: interrupted_at_random(trial, f, kills),
        lambda f: killed_at_changes(trial, f, stride),
        *(partial(lambda name, f: stage_killed(trial, f, name, stride), name) for name in STAGES),
        lambda f: peer_killed(trial, f, times),
        *([lambda f: disk_full(trial, f, times), lambda f: read_only(trial, f)] if mounts else []),
        lambda f: file_too_large(trial, f, times),
        lambda f: clock_set_back(trial, f, times),
        lambda f: damaged(trial, f, truncated, "table of a cell truncated", "cells/*", times),
        lambda f: damaged(trial, f, flipped, "a bit of a cell's table flipped", "cells/*", times),
        lambda f: damaged(trial, f, truncated, "image truncated", "images/*", times),
        lambda f: damaged(trial, f, flipped, "a bit of an image flipped", "images/*", times),
        lambda f: damaged(trial, f, Path.unlink, "image deleted", "images/*", times),
        lambda f: out_of_memory(trial, f),
    ]
    for number, fault in enumerate(faults):
        subfolder = folder / f"fault-{number}"
        subfolder.mkdir()
        result = fault(subfolder)
        log(f"{result.name}: {result.tried} tried, {result.lost} lost")
        yield result


def page(
    faults: list[Fault], long: Endurance | None, options: argparse.Namespace, seconds: float, total: float, edits: str
) -> str:
    """Return docs/reliability.md. Its last section, on edited JSON files, is `edits`."""
    rows = "\n".join(f"| {f.name} | {f.tried} | {f.lost} | {f.seen} |" for f in faults)
    cells = len(GRID["prompts"]) * len(GRID["sizes"]) * len(GRID["seeds"])
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    command = f"--model {options.model} --kills {options.kills} --times {options.times} --stride {options.stride}"
    command += f" --ray {options.ray} --cells {options.cells}"
    return f"""# Reliability of a run directory

Measured by `python -m benchmarks.faults {command} --seed {options.seed}`
on {hardware()}, with {named}, in {total / 60:.0f} minutes.

Each fault hits a sweep of {cells} cells ({seconds:.1f} s undisturbed), and the same command is rerun until it
finishes. "Lost" counts the files of the run (tables, images, manifest) that are then missing, left over, or not
bit-identical to the files of an undisturbed run. It also counts outputs of later stages that were at any moment
neither the old nor the new file.

| fault | tried | lost | what the user sees |
|---|---|---|---|
{rows}

A kill is SIGKILL to a separate process; data that the operating system already has is still written. Not tested: power
failure (files and folders are flushed to disk before a cell counts as done), and two machines on one shared folder. A
process that the system kills for lack of memory is like any other kill, and is killed again without more memory. The
Ray cluster is two nodes on one machine, with one worker each.

{section(long) if long else ""}
{edits}"""


if __name__ == "__main__":
    main()
