"""What a run directory survives: kills, a full disk, damage, lack of memory, each done for real and counted.

python -m benchmarks.faults --kills 200 --out docs/reliability.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from rich.console import Console

from benchmarks.endurance import Endurance, measure_sweeps, section
from entropy_probe.attention import find_denoiser
from entropy_probe.errors import IncompleteError, InputError
from entropy_probe.estimation import derive_measured, fit
from entropy_probe.evaluation import validate_sweep
from entropy_probe.models import load
from entropy_probe.reports import Report
from entropy_probe.runs import Engine, RayEngine, Sweep, sweep
from entropy_probe.runs.environment import hardware, versions
from entropy_probe.runs.files import is_temporary

GRID: dict[str, Any] = dict(
    prompts=("noto red apple", "flat pizza"), sizes=((32, 32), (64, 64)), seeds=(0, 1, 2), steps=1, guidance_scale=4.0,
    scale_factors=(2.0,), batch=2, progress=False,
)  # fmt: skip
YEARS = 10 * 365 * 24 * 3600

say = Console(stderr=True, highlight=False).print


@dataclass(frozen=True)
class Fault:
    """A kind of fault, how often it was tried, and what it cost.

    Attributes:
        name: what was done.
        tried: how often.
        lost: files that were missing, differed from an undisturbed run's by a bit, or were left over, when the same
            command had run to its end; and files that were neither old nor new at any moment.
        seen: what one is told.
    """

    name: str
    tried: int
    lost: int
    seen: str


@dataclass(frozen=True)
class Trial:
    """What every fault starts from.

    Attributes:
        pipeline: that is sampled.
        truth: an undisturbed run.
        seconds: that it took.
        random: decides the moments.
    """

    pipeline: Any
    truth: Path
    seconds: float
    random: random.Random

    def sweep(self, store: Path, engine: Engine | Literal["local"] = "local") -> Sweep:
        return sweep(self.pipeline, store=store, model="model", engine=engine, **GRID)

    def lost(self, store: Path, *, litter: bool = True) -> int:
        """Files that differ from the undisturbed run's, by name or by a bit.

        Args:
            store: a run.
            litter: count what a killed process leaves until somebody tidies, too.
        """
        mine, theirs = contents(store), contents(self.truth)
        differ = {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
        lost = {name for name in differ if litter or not is_temporary(Path(name))}
        if lost:
            say(f"lost: {', '.join(sorted(lost))}")
        return len(lost)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def start(work: Callable[[], Any]) -> multiprocessing.process.BaseProcess:
    """Work in a process of its own: forked, so that it need not load the model again."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def survives(work: Callable[[], Any], seconds: float) -> bool:
    """Whether work is done before its process is killed, after some time."""
    process = start(work)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the work failed by itself: exit code {process.exitcode}")
    return process.exitcode == 0


def dying(work: Callable[[], Any], folder: Path, change: int) -> None:
    """Do work, and be killed right before the change of this number to the files of a folder.

    Changes are what opens a file to write, renames, removes, and every call of an open file: between the opening and
    the writing a file that is not written aside would be torn.
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


def killed_at_random(trial: Trial, folder: Path, kills: int) -> Fault:
    """Kill a sweep at random moments until it is finished, and begin another until there are kills enough."""
    done = lost = runs = 0
    while done < kills:
        store = folder / f"run-{runs}"
        while not survives(partial(trial.sweep, store), trial.random.uniform(0, trial.seconds / 2)):
            done += 1
        lost += trial.lost(store)
        runs += 1
        shutil.rmtree(store)
        say(f"{done} of {kills} kills, {runs} sweeps finished, {lost} files lost")
    seen = f"the same command goes on; {runs} sweeps were finished"
    return Fault("`sweep` killed at a random moment", done, lost, seen)


def interrupted_at_random(trial: Trial, folder: Path, times: int) -> Fault:
    """Interrupt a sweep, as by Ctrl-C, at random moments until it is finished, and begin another."""
    done = lost = runs = 0

    def work() -> None:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            trial.sweep(store)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        except KeyboardInterrupt:
            os._exit(130)

    def cells() -> int:
        return len(list(store.glob("cells/*.parquet")))

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until there is somebody to take it
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
            if process.exitcode == 0:  # it may have come when all was done; but nobody does two batches more
                lost += cells() - before > GRID["batch"]
                break
            left = [str(path) for path in store.rglob(".*.lock")]
            lost += (process.exitcode != 130) + len(left)
            if process.exitcode != 130 or left:
                say(f"interrupted: exit code {process.exitcode}, {left} left")
        lost += trial.lost(store) + (process.exitcode != 0)
        runs += 1
        shutil.rmtree(store)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return Fault("`sweep` interrupted at a random moment", done, lost, "exit code 130; the same command goes on")


def killed_at_changes(trial: Trial, folder: Path, stride: int) -> Fault:
    """Kill a sweep before its first change of a file, another before its second, and so on; each is then finished."""
    lost = tried = 0
    while True:
        store = folder / f"run-{tried}"
        if survives(partial(dying, partial(trial.sweep, store), store, tried * stride), 600):
            return Fault("`sweep` killed right before a change of a file", tried, lost, "the same command goes on")
        survives(partial(trial.sweep, store), 600)
        lost += trial.lost(store)
        shutil.rmtree(store)
        tried += 1


def fit_stage(made: Sweep) -> None:
    made.run.write("fit.json", fit(made).to_json())


def derive_stage(made: Sweep) -> None:
    made.run.write("law.json", derive_measured(made, rounds=1, progress=False).to_json())


def validate_stage(made: Sweep) -> None:
    made.run.write("outcome.json", validate_sweep(made, ["original", "paper"], progress=False).to_json())


def report_stage(made: Sweep) -> None:
    Report(made).save(made.run.path / "report.html")


STAGES = {
    "fit": (fit_stage, ("fit.json",)),
    "derive": (derive_stage, ("law.json",)),
    "validate": (validate_stage, ("outcome.json",)),
    "report": (report_stage, ("report.html", "report.json", "records.parquet", "summary.csv")),
}


def stage_killed(trial: Trial, folder: Path, name: str, stride: int) -> Fault:
    """Kill a stage before each change of a file: at every moment an output is the old one or the new one."""
    work, outputs = STAGES[name]
    store = folder / "run"
    shutil.copytree(trial.truth, store)
    made = Sweep.open(store, trial.pipeline)
    survives(partial(work, made), 600)
    new, old = contents(store), {output: f"old {output}".encode() for output in outputs}
    for output in outputs:
        (store / output).write_bytes(old[output])
    lost = tried = 0
    while not survives(partial(dying, partial(work, made), store, tried * stride), 600):
        lost += sum((store / output).read_bytes() not in (old[output], new[output]) for output in outputs)
        tried += 1
    found = contents(store)
    lost += sum(found.get(path) != new.get(path) for path in found.keys() | new.keys())
    return Fault(f"`{name}` killed right before a change of a file", tried, lost, "outputs are old or new, never torn")


def peer_killed(trial: Trial, folder: Path, times: int) -> Fault:
    """Two processes on one run; one is killed, and the other does its part too.

    The other may have tidied while the one still held a claim: its locks are then there until the next command.
    """
    lost = 0
    for number in range(times):
        store = folder / f"run-{number}"
        victim, other = (start(partial(trial.sweep, store)) for _ in range(2))
        victim.join(trial.random.uniform(0, trial.seconds))
        victim.kill()
        other.join()
        lost += (other.exitcode != 0) + trial.lost(store, litter=False)
        trial.sweep(store)
        lost += trial.lost(store)
    return Fault("one of two processes on a run killed", times, lost, "the other one does all")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A disk of some bytes, and what mounts it again with other options."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def refused(trial: Trial, store: Path) -> str:
    """What a sweep that cannot write says."""
    try:
        trial.sweep(store)
    except InputError as error:
        return str(error).replace(str(store), "DIR")
    raise RuntimeError("the sweep wrote where nothing can be written")


def disk_full(trial: Trial, folder: Path, times: int) -> Fault:
    """Fill the disk at one place after another of a sweep, then make room."""
    lost, told = 0, Counter[str]()
    total = sum(map(len, contents(trial.truth).values()))
    for number in range(times):
        with small_disk(folder / f"disk-{number}", int(total * (number + 0.5) / times)) as mount_again:
            store = folder / f"disk-{number}" / "run"
            told[refused(trial, store).rsplit(": ", 1)[-1]] += 1
            mount_again(f"size={4 * total}")
            trial.sweep(store)
            lost += trial.lost(store)
    return Fault("disk full", times, lost, f"exit code 2, “{' or '.join(told)}”; goes on when there is room")


def file_too_large(trial: Trial, folder: Path, times: int) -> Fault:
    """Where nothing can be mounted: no file may grow beyond some bytes, in a process of its own."""
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
    return Fault("no file may grow (`RLIMIT_FSIZE`)", times, lost, "exit code 2, the cause; goes on without the limit")


def read_only(trial: Trial, folder: Path) -> Fault:
    """A finished run on a read-only disk is read; what would write to it is refused."""
    disk = folder / "disk"
    with small_disk(disk, 64 * 2**20) as mount_again:
        shutil.copytree(trial.truth, disk / "run")
        mount_again("ro")
        lost = int(not Sweep.open(disk / "run").frame().equals(Sweep.open(trial.truth).frame()))
        told = refused(trial, disk / "run")
        lost += trial.lost(disk / "run")
    return Fault("read-only folder", 1, lost, f"is read; to sweep there is exit code 2, “{told.rsplit(': ', 1)[-1]}”")


def clock_set_back(trial: Trial, folder: Path, times: int) -> Fault:
    """Every file of a run that was killed is dated ten years ahead, as after the clock was set back."""
    lost = 0
    for number in range(times):
        store = folder / f"run-{number}"
        survives(partial(trial.sweep, store), trial.random.uniform(0, trial.seconds))
        for path in store.rglob("*"):
            os.utime(path, (time.time() + YEARS,) * 2)
        trial.sweep(store)
        lost += trial.lost(store)
    return Fault("clock set back ten years in the middle", times, lost, "nothing depends on the clock")


def damaged(trial: Trial, folder: Path, harm: Callable[[Path], None], name: str, kind: str, times: int) -> Fault:
    """Damage one file after another; the sweep that is taken up finds it."""
    store, lost, told = folder / "run", 0, 0
    shutil.copytree(trial.truth, store)
    for _ in range(times):
        harm(trial.random.choice(sorted(store.glob(kind))))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trial.sweep(store)
        told += any("is damaged and will be sampled again" in str(warning.message) for warning in caught)
        lost += trial.lost(store)
    return Fault(name, times, lost + times - told, "“is damaged and will be sampled again”, to the bit")


def flip(path: Path, choice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    place = choice.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def cut(path: Path, choice: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: choice.randrange(len(content))])


def out_of_memory(trial: Trial, folder: Path) -> Fault:
    """A sweep that may take little more memory than is taken already, and then one that may take all."""
    grid = {**GRID, "sizes": ((32, 32), (128, 128), (256, 256)), "seeds": (0, 1), "scale_factors": (), "batch": 64}
    count, kept, failed, lost = 12, 0, 0, 0

    def limited(store: Path, more: int) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        limit = 1024 * int(status["VmSize"].split()[0]) + more
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
    seen = f"exit code 1, the reason in `failed/`; {kept} cells beside them were done; all are with more memory"
    return Fault("out of memory in a cell", failed, lost, seen)


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Any, list[Any]]]:
    """A Ray cluster of two nodes on this machine, with room for one worker each; the second may be replaced."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args=node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield (lambda: cluster.add_node(**node)), cluster.remove_node
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextlib.contextmanager
def once_there_are(store: Path, cells: int, deed: Callable[[], Any]) -> Iterator[None]:
    """Do something as soon as a run has so many cells."""

    def watch() -> None:
        while len(list(store.glob("cells/*.parquet"))) < cells:
            time.sleep(0.005)
        deed()

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    watcher.join()


def ray_workers() -> list[psutil.Process]:
    """Their processes, whose names Ray makes of what they do."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may be gone by now
            found += [process] if "_Worker" in " ".join(process.cmdline()) else []
    return found


def ray_disturbed(
    trial: Trial, folder: Path, name: str, deed: Callable[[], Any], mend: Callable[[], Any], times: int
) -> Fault:
    """A sweep on a cluster to which something happens in the middle, at another number of cells each time."""
    lost = 0
    for number in range(times):
        store = folder / f"run-{number}"
        with once_there_are(store, 1 + number % 6, deed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial.sweep(store, RayEngine())
        mend()
        lost += trial.lost(store)
        say(f"{name}: {number + 1} of {times}, {lost} files lost")
    return Fault(name, times, lost, "another worker samples it; records as of one process, to the bit")


def deadly(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """What a step with small latents does, in a worker."""
    latents = arguments[0] if arguments else named["sample"]
    if latents.shape[-1] < 16:
        os.kill(os.getpid(), signal.SIGKILL)


def ray_deadly(trial: Trial, folder: Path) -> Fault:
    """A batch that kills every worker that takes it, as one does that has not enough memory; then it is harmless."""
    store, count = folder / "run", len(list((trial.truth / "cells").iterdir()))
    hook = find_denoiser(trial.pipeline).register_forward_pre_hook(deadly, with_kwargs=True)
    lost = 1
    try:
        with warnings.catch_warnings(), contextlib.suppress(IncompleteError):
            warnings.simplefilter("ignore")
            trial.sweep(store, RayEngine())
            lost += 1  # it has not said so
        lost -= 1
    finally:
        hook.remove()
    done, marked = len(list(store.glob("cells/*"))), len(list(store.glob("failed/*")))
    lost += count - done - marked
    trial.sweep(store)
    lost += trial.lost(store)
    seen = f"exit code 1, the reason in `failed/`; {done} cells beside them were done"
    return Fault("Ray: a cell kills every worker", marked, lost, seen)


def on_ray(trial: Trial, folder: Path, times: int) -> Iterator[Fault]:
    """What may happen to a cluster."""
    with two_nodes() as (add, remove):
        nodes = [add()]

        def kill_worker() -> None:
            ray_workers()[0].kill()

        def kill_node() -> None:
            remove(nodes.pop(), allow_graceful=False)

        for number, fault in enumerate(
            (
                lambda f: ray_disturbed(trial, f, "Ray: a worker killed", kill_worker, lambda: None, times),
                lambda f: ray_disturbed(trial, f, "Ray: a node killed", kill_node, lambda: nodes.append(add()), times),
                lambda f: ray_deadly(trial, f),
            )
        ):
            own = folder / f"ray-{number}"
            own.mkdir()
            yield fault(own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--times", type=int, default=20, help="how often each of the other faults is tried")
    parser.add_argument("--stride", type=int, default=1, help="kill before every how-manieth change of a file")
    parser.add_argument("--ray", type=int, default=10, help="how often each fault of a Ray cluster is tried")
    parser.add_argument("--cells", type=int, default=1000, help="of the sweep whose memory is measured; 0: of none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the page; without it, JSON on standard output")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no other thread
    pipeline = load(options.model, device="cpu")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        truth = Path(name) / "truth"
        sweep(pipeline, store=Path(name) / "warm", model="model", **GRID)
        before = time.monotonic()
        sweep(pipeline, store=truth, model="model", **GRID)
        trial = Trial(pipeline, truth, time.monotonic() - before, random.Random(options.seed))
        faults = list(tried(trial, Path(name), options.kills, options.times, options.stride))
        long = measure_sweeps(pipeline, options.cells, Path(name)) if options.cells else None
        if options.ray:  # last: with Ray a process has threads, and is not forked any more
            faults += on_ray(trial, Path(name), options.ray)
    if options.out:
        options.out.write_text(page(faults, long, options, trial.seconds, time.monotonic() - began))
    else:
        print(json.dumps([asdict(fault) for fault in faults]))


def tried(trial: Trial, folder: Path, kills: int, times: int, stride: int) -> Iterator[Fault]:
    """All faults, each in a folder of its own."""
    flipped, truncated = partial(flip, choice=trial.random), partial(cut, choice=trial.random)
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
        own = folder / f"fault-{number}"
        own.mkdir()
        made = fault(own)
        say(f"{made.name}: {made.tried} tried, {made.lost} lost")
        yield made


def page(faults: list[Fault], long: Endurance | None, options: argparse.Namespace, seconds: float, total: float) -> str:
    rows = "\n".join(f"| {f.name} | {f.tried} | {f.lost} | {f.seen} |" for f in faults)
    cells = len(GRID["prompts"]) * len(GRID["sizes"]) * len(GRID["seeds"])
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    command = f"--model {options.model} --kills {options.kills} --times {options.times} --stride {options.stride}"
    command += f" --ray {options.ray} --cells {options.cells}"
    return f"""# What a run directory survives

Made by `python -m benchmarks.faults {command} --seed {options.seed}`
on {hardware()}, with {named}, in {total / 60:.0f} minutes.

A sweep of {cells} cells ({seconds:.1f} s undisturbed) meets each fault, and the same command is started again until it
ends. "Lost" counts files of the run that are then missing, left over, or different by a single bit from those of an
undisturbed run (tables, images, manifest), and outputs of the later stages that were at any moment neither the old
file nor the new one.

| fault | tried | lost | what one sees |
|---|---|---|---|
{rows}

A kill is SIGKILL to a process of its own; what the operating system has taken by then, it still writes. A loss of power
was not tried: files and folders are forced to the disk before a cell counts. Nor were two machines on one shared
folder. A process that the system kills for want of memory is a kill like any other, and is killed again where it has no
more. The Ray cluster is two nodes on one machine, a worker each.

{section(long) if long else ""}"""


if __name__ == "__main__":
    main()
