"""The sweep that every fault hits, and processes that can be killed."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from entropy_probe.runs import Engine, Sweep, sweep
from entropy_probe.runs.files import is_temporary

GRID: dict[str, Any] = dict(
    prompts=("noto red apple", "flat pizza"), sizes=((32, 32), (64, 64)), seeds=(0, 1, 2), steps=1, guidance_scale=4.0,
    scale_factors=(2.0,), batch=2, progress=False,
)  # fmt: skip
log = Console(stderr=True, highlight=False).print


@dataclass(frozen=True)
class Fault:
    """A kind of fault and its cost.

    Attributes:
        name: a description.
        tried: number of trials.
        lost: files that were missing, left over, or different from an undisturbed run after the same command
            was rerun to its end; and outputs that were neither the old nor the new file at some moment.
        seen: what the user sees.
    """

    name: str
    tried: int
    lost: int
    seen: str


@dataclass(frozen=True)
class Trial:
    """The setting of all faults.

    Attributes:
        pipeline: the model to sample.
        reference: directory of an undisturbed run.
        seconds: duration of the undisturbed run.
        random: chooses the moments of the faults.
    """

    pipeline: Any
    reference: Path
    seconds: float
    random: random.Random

    def sweep(self, store: Path, engine: Engine | Literal["local"] = "local") -> Sweep:
        return sweep(self.pipeline, store=store, model="model", engine=engine, **GRID)

    def lost(self, store: Path, *, temporary: bool = True) -> int:
        """Count the files that differ from the undisturbed run.

        Args:
            store: directory of a run.
            temporary: also count temporary files, which a killed process leaves behind until the next command.
        """
        files, expected = contents(store), contents(self.reference)
        differ = {name for name in files.keys() | expected.keys() if files.get(name) != expected.get(name)}
        lost = {name for name in differ if temporary or not is_temporary(Path(name))}
        if lost:
            log(f"lost: {', '.join(sorted(lost))}")
        return len(lost)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def start(work: Callable[[], Any]) -> multiprocessing.process.BaseProcess:
    """Start a forked process, which shares the loaded model."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def survives(work: Callable[[], Any], seconds: float) -> bool:
    """Run `work` in a process and kill it after some seconds; return whether it had finished.

    Raises:
        RuntimeError: if the process fails for another reason.
    """
    process = start(work)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the work failed without a kill: exit code {process.exitcode}")
    return process.exitcode == 0


def killed_before_change(work: Callable[[], Any], folder: Path, change: int) -> None:
    """Run `work`, and kill this process right before change number `change` to the files of a folder.

    A change opens a file for writing, renames or removes it, or writes to an open file: a kill between opening and
    writing would leave an incomplete file, if it were written in place.
    """
    left = change

    def count(path: object) -> None:
        nonlocal left
        if str(path).startswith(str(folder)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.mkdir"):
            count(arguments[0])

    def profile(_: Any, event: str, call: Any) -> None:
        file = getattr(call, "__self__", None)
        if event == "c_call" and isinstance(file, io.BufferedWriter):
            count(file.name)

    sys.addaudithook(audit)
    sys.setprofile(profile)
    work()
