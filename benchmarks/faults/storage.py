"""Full and read-only disks, damaged files, a wrong clock and lack of memory."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.faults.trial import GRID, Fault, Trial, contents, survives
from entropy_probe.errors import IncompleteError, InputError
from entropy_probe.runs import Sweep, sweep

TEN_YEARS = 10 * 365 * 24 * 3600
"""In seconds."""


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """Mount a disk of `size` bytes at `folder`; yield a function that remounts it with other options."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def refused(trial: Trial, store: Path) -> str:
    """Return the error message of a sweep that cannot write, with the path replaced by DIR."""
    try:
        trial.sweep(store)
    except InputError as error:
        return str(error).replace(str(store), "DIR")
    raise RuntimeError("the sweep wrote to a folder that cannot be written")


def disk_full(trial: Trial, folder: Path, times: int) -> Fault:
    """Let the disk fill up at one point after another of a sweep, then enlarge it and rerun."""
    lost, errors = 0, Counter[str]()
    total = sum(map(len, contents(trial.reference).values()))
    for number in range(times):
        with small_disk(folder / f"disk-{number}", int(total * (number + 0.5) / times)) as mount_again:
            store = folder / f"disk-{number}" / "run"
            errors[refused(trial, store).rsplit(": ", 1)[-1]] += 1
            mount_again(f"size={4 * total}")
            trial.sweep(store)
            lost += trial.lost(store)
    return Fault("disk full", times, lost, f"exit code 2, “{' or '.join(errors)}”; resumes when there is space")


def file_too_large(trial: Trial, folder: Path, times: int) -> Fault:
    """Limit the size of files, in a separate process; works where mounting is not allowed."""
    lost = 0
    for number in range(times):
        store = folder / f"run-{number}"

        def limited(store: Path = store, number: int = number) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100 * (number + 1), resource.RLIM_INFINITY))
            refused(trial, store)

        if not survives(limited, 600):
            lost += 1
        trial.sweep(store)
        lost += trial.lost(store)
    return Fault("file size limited (`RLIMIT_FSIZE`)", times, lost, "exit code 2, the cause; resumes without the limit")


def read_only(trial: Trial, folder: Path) -> Fault:
    """Read a finished run on a read-only disk, and try to write to it."""
    disk = folder / "disk"
    with small_disk(disk, 64 * 2**20) as mount_again:
        shutil.copytree(trial.reference, disk / "run")
        mount_again("ro")
        lost = int(not Sweep.open(disk / "run").frame().equals(Sweep.open(trial.reference).frame()))
        error = refused(trial, disk / "run")
        lost += trial.lost(disk / "run")
    return Fault("read-only folder", 1, lost, f"can be read; `sweep` has exit code 2, “{error.rsplit(': ', 1)[-1]}”")


def clock_set_back(trial: Trial, folder: Path, times: int) -> Fault:
    """Date every file of a killed run ten years ahead, as if the clock had been set back."""
    lost = 0
    for number in range(times):
        store = folder / f"run-{number}"
        survives(partial(trial.sweep, store), trial.random.uniform(0, trial.seconds))
        for path in store.rglob("*"):
            os.utime(path, (time.time() + TEN_YEARS,) * 2)
        trial.sweep(store)
        lost += trial.lost(store)
    return Fault("clock set back ten years in the middle", times, lost, "no effect")


def damaged(trial: Trial, folder: Path, damage: Callable[[Path], None], name: str, kind: str, times: int) -> Fault:
    """Damage one file after another; the rerun sweep must detect it."""
    store, lost, warned = folder / "run", 0, 0
    shutil.copytree(trial.reference, store)
    for _ in range(times):
        damage(trial.random.choice(sorted(store.glob(kind))))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trial.sweep(store)
        warned += any("is damaged and will be sampled again" in str(warning.message) for warning in caught)
        lost += trial.lost(store)
    return Fault(name, times, lost + times - warned, "“is damaged and will be sampled again”; bit-identical")


def flip_bit(path: Path, choice: random.Random) -> None:
    """Flip a random bit of a file."""
    content = bytearray(path.read_bytes())
    position = choice.randrange(8 * len(content))
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


def truncate(path: Path, choice: random.Random) -> None:
    """Truncate a file at a random position."""
    content = path.read_bytes()
    path.write_bytes(content[: choice.randrange(len(content))])


def out_of_memory(trial: Trial, folder: Path) -> Fault:
    """Run a sweep with little more memory than the process already has, and then without a limit."""
    grid = {**GRID, "sizes": ((32, 32), (128, 128), (256, 256)), "seeds": (0, 1), "scale_factors": (), "batch": 64}
    count, kept, failed, lost = 12, 0, 0, 0

    def limited(store: Path, extra: int) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        limit = 1024 * int(status["VmSize"].split()[0]) + extra
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with contextlib.suppress(IncompleteError):
            sweep(trial.pipeline, store=store, model="model", **grid)

    for megabytes in (16, 64, 128, 256):
        store = folder / str(megabytes)
        lost += not survives(partial(limited, store, megabytes * 2**20), 600)
        done, marked = len(list(store.glob("cells/*"))), len(list(store.glob("failed/*")))
        lost += count - done - marked
        kept, failed = kept + done, failed + marked
    sweep(trial.pipeline, store=store, model="model", **grid)
    lost += len(list(store.glob("failed/*"))) + count - len(list(store.glob("cells/*")))
    seen = f"exit code 1, the reason in `failed/`; {kept} other cells were finished; all are finished with more memory"
    return Fault("out of memory in a cell", failed, lost, seen)
