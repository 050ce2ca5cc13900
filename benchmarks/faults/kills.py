"""Kills and interruptions of a sweep, of a later stage and of one of two processes."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path

from benchmarks.faults.trial import GRID, Fault, Trial, contents, killed_before_change, log, start, survives
from entropy_probe.estimation import derive, fit
from entropy_probe.evaluation import validate
from entropy_probe.reports import Report
from entropy_probe.runs import Sweep


def killed_at_random(trial: Trial, folder: Path, kills: int) -> Fault:
    """Kill a sweep at random moments and rerun it until it finishes; repeat until there are enough kills."""
    done = lost = runs = 0
    while done < kills:
        store = folder / f"run-{runs}"
        while not survives(partial(trial.sweep, store), trial.random.uniform(0, trial.seconds / 2)):
            done += 1
        lost += trial.lost(store)
        runs += 1
        shutil.rmtree(store)
        log(f"{done} of {kills} kills, {runs} sweeps finished, {lost} files lost")
    seen = f"the same command resumes; {runs} sweeps were finished"
    return Fault("`sweep` killed at a random moment", done, lost, seen)


def interrupted_at_random(trial: Trial, folder: Path, times: int) -> Fault:
    """Interrupt a sweep by SIGINT, as Ctrl-C does, at random moments and rerun it until it finishes; repeat."""
    done = lost = runs = 0

    def work() -> None:
        try:
            signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # it is ignored if a shell started this in the background
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            trial.sweep(store)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        except KeyboardInterrupt:
            os._exit(130)

    def cells() -> int:
        return len(list(store.glob("cells/*.parquet")))

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the process has its handler
    while done < times:
        store = folder / f"run-{runs}"
        while True:
            process = start(work)
            process.join(trial.random.uniform(0, trial.seconds))
            if process.exitcode is not None:
                break
            before = cells()
            os.kill(process.pid or 0, signal.SIGINT)
            process.join()
            done += 1
            if process.exitcode == 0:  # SIGINT came after the last batch, or one batch before
                lost += cells() - before > GRID["batch"]
                break
            left = [str(path) for path in store.rglob(".*.lock")]
            lost += (process.exitcode != 130) + len(left)
            if process.exitcode != 130 or left:
                log(f"interrupted: exit code {process.exitcode}, {left} left")
        lost += trial.lost(store) + (process.exitcode != 0)
        runs += 1
        shutil.rmtree(store)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return Fault("`sweep` interrupted at a random moment", done, lost, "exit code 130; the same command resumes")


def killed_at_changes(trial: Trial, folder: Path, stride: int) -> Fault:
    """Kill a sweep before its first change of a file, another one before its second, and so on; rerun each."""
    lost = tried = 0
    while True:
        store = folder / f"run-{tried}"
        if survives(partial(killed_before_change, partial(trial.sweep, store), store, tried * stride), 600):
            return Fault("`sweep` killed right before a change of a file", tried, lost, "the same command resumes")
        survives(partial(trial.sweep, store), 600)
        lost += trial.lost(store)
        shutil.rmtree(store)
        tried += 1


def fit_stage(run: Sweep) -> None:
    run.run.write("fit.json", fit(run).to_json())


def derive_stage(run: Sweep) -> None:
    run.run.write("law.json", derive(run, rounds=1, progress=False).to_json())


def validate_stage(run: Sweep) -> None:
    run.run.write("outcome.json", validate(run, ["original", "paper"], progress=False).to_json())


def report_stage(run: Sweep) -> None:
    Report(run).save(run.run.path / "report.html", data=True)


STAGES = {
    "fit": (fit_stage, ("fit.json",)),
    "derive": (derive_stage, ("law.json",)),
    "validate": (validate_stage, ("outcome.json",)),
    "report": (report_stage, ("report.html", "report.json", "records.parquet", "summary.csv")),
}


def stage_killed(trial: Trial, folder: Path, name: str, stride: int) -> Fault:
    """Kill a stage before each change of a file: every output must be the old or the new file."""
    work, outputs = STAGES[name]
    store = folder / "run"
    shutil.copytree(trial.reference, store)
    run = Sweep.open(store, trial.pipeline)
    survives(partial(work, run), 600)
    new, old = contents(store), {output: f"old {output}".encode() for output in outputs}
    for output in outputs:
        (store / output).write_bytes(old[output])
    lost = tried = 0
    while not survives(partial(killed_before_change, partial(work, run), store, tried * stride), 600):
        lost += sum((store / output).read_bytes() not in (old[output], new[output]) for output in outputs)
        tried += 1
    files = contents(store)
    lost += sum(files.get(path) != new.get(path) for path in files.keys() | new.keys())
    return Fault(
        f"`{name}` killed right before a change of a file", tried, lost, "every output is the old or the new file"
    )


def peer_killed(trial: Trial, folder: Path, times: int) -> Fault:
    """Run two processes on one run directory and kill one; the other one must do all the work.

    Locks of the killed process can remain until the next command.
    """
    lost = 0
    for number in range(times):
        store = folder / f"run-{number}"
        victim, other = (start(partial(trial.sweep, store)) for _ in range(2))
        victim.join(trial.random.uniform(0, trial.seconds))
        victim.kill()
        other.join()
        lost += (other.exitcode != 0) + trial.lost(store, temporary=False)
        trial.sweep(store)
        lost += trial.lost(store)
    return Fault("one of two processes on a run killed", times, lost, "the other process does all the work")
