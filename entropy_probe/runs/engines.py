"""Where cells are sampled: in this process, or by workers on a Ray cluster, whose results come back to this one."""

from __future__ import annotations

import importlib
import logging
import os
import re
import textwrap
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import PicklingError
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle

from entropy_probe.errors import InputError
from entropy_probe.interruption import held_back
from entropy_probe.laws import ScalingLaw
from entropy_probe.models import fingerprint, load, quiet_libraries
from entropy_probe.runs.directory import Manifest
from entropy_probe.runs.grid import Cell
from entropy_probe.runs.sampling import Failed, Sampled, sample_cells

PATIENCE = 3
"""Workers that may die over one batch before it is halved, and a cell that is by itself then given up."""

ABSENCE = 600
"""Seconds that a sweep waits for a node when none is left."""

_GLANCE = 5
"""Seconds between two looks at the nodes."""


@dataclass(frozen=True, eq=False)
class Task:
    """Cells of one size and law, to be sampled together."""

    cells: tuple[Cell, ...]
    law: ScalingLaw


class Take(Protocol):
    """The tasks of a sweep, handed out one by one to whoever has somebody to do them."""

    def __call__(self, *, wait: bool) -> Task | None:
        """The next task, or None if there is none now.

        Args:
            wait: for tasks that other processes are at; only for one who holds no task, since two that hold and wait
                would wait forever. None is then the end.
        """
        ...


Done = tuple[Task, Iterable[Sampled | Failed]]
"""A task, and what `sample_cells` makes of it."""


class Engine(Protocol):
    """What samples."""

    def sample(self, pipeline: Any, manifest: Manifest, take: Take) -> Generator[Done, None, None]:
        """All tasks, in any order; a task is held until the next is asked of this iterator."""
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Samples in this process."""

    def sample(self, pipeline: Any, manifest: Manifest, take: Take) -> Generator[Done, None, None]:
        """See `Engine`."""
        while task := take(wait=True):
            yield task, sample_cells(pipeline, list(task.cells), task.law, manifest)


@dataclass(frozen=True)
class RayEngine:
    """Samples on a Ray cluster: an actor with the pipeline on every GPU, or on as many CPUs as torch has threads here.

    Only this process writes, so that the workers need no folder in common. What a worker or a node that died was at is
    done by another. A batch over which `PATIENCE` workers died is done in halves, and so are these, until the cells are
    found that kill a worker by themselves; they are given up. With no node left a sweep waits for one, `ABSENCE`
    seconds. With the same number of threads a CPU gives the same records as it does here, to the bit.

    Attributes:
        address: of the cluster, as `ray.init` takes it; if none, one that is connected, running or started here.
        model: hub id, folder or bundled name that every worker loads by itself; if none, the pipeline is sent to
            them, as it is, through Ray's object store.
        device: `cuda` or `cpu`, of the workers; that of the pipeline if none.

    Raises:
        InputError: for another device.
    """

    address: str | None = None
    model: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu", "cuda"):
            raise InputError(f"workers sample on cpu or cuda, not on {self.device!r}")

    @classmethod
    def connect(cls, address: str | None = None, *, model: str | None = None, device: str = "auto") -> RayEngine:
        """An engine on a cluster that this process is connected to from now on.

        Args:
            address: see `RayEngine`.
            model: see `RayEngine`.
            device: of the workers; `auto` takes cuda if the cluster has GPUs, else cpu.

        Raises:
            InputError: for another device, or if there is no Ray or no cluster.
        """
        made = cls(address, model, None if device == "auto" else device)
        ray = _connect(address)
        gpus = ray.cluster_resources().get("GPU", 0)
        return replace(made, device=made.device or ("cuda" if gpus else "cpu"))

    def sample(self, pipeline: Any, manifest: Manifest, take: Take) -> Generator[Done, None, None]:
        """See `Engine`.

        Raises:
            InputError: if Ray is not installed or cannot be reached, has no place for a worker or none any more, or its
                workers cannot load the model or load another one.
        """
        with _connected(self.address) as ray:
            device = self.device or pipeline.device.type
            threads = None if device == "cuda" else torch.get_num_threads()
            needs = {"num_cpus": threads or 1, "num_gpus": int(device == "cuda")}
            source = _resolved(self.model) if self.model else _sent(ray, pipeline)
            hire = ray.remote(**needs, max_restarts=0)(_Worker).remote
            yield from _by_workers(ray, lambda: hire(source, device, threads, manifest), needs, take)


class _Worker:
    """Holds a pipeline in a process of its own; an actor, so that the weights are loaded once."""

    def __init__(self, source: Any, device: str, threads: int | None, manifest: Manifest) -> None:
        if threads:
            torch.set_num_threads(threads)  # they decide the last digits
        self._source, self._device, self._manifest = source, device, manifest
        self._pipeline: Any = None

    def load(self) -> None:
        """Not when the actor is made: what goes wrong there is told as a text, and here as the error that it is."""
        quiet_libraries()
        if isinstance(self._source, str):
            self._pipeline = load(self._source, device=self._device, dtype=self._manifest.dtype)
        else:
            _number_hooks_after_those_of(self._source)
            self._pipeline = self._source.to(self._device)
        if fingerprint(self._pipeline) != self._manifest.fingerprint:
            raise InputError(f"a worker finds another model under the name {self._source!r} than there is here")

    def sample(self, cells: Sequence[Cell], law: ScalingLaw) -> list[Sampled | Failed]:
        """See `sample_cells`."""
        return list(sample_cells(self._pipeline, list(cells), law, self._manifest))


@dataclass(frozen=True, eq=False)
class _Part:
    """What a worker is given of a task: all of it, or less where workers died over more.

    Attributes:
        task: the task.
        cells: of it, to be sampled together.
        deaths: of workers over these cells, by themselves or among others.
    """

    task: Task
    cells: tuple[Cell, ...]
    deaths: int = 0

    def after_death(self, reason: str) -> tuple[list[_Part], list[Failed]]:
        """What is to be done again when one more worker died over it, and what is given up."""
        deaths, half = self.deaths + 1, len(self.cells) // 2
        if deaths >= PATIENCE and not half:
            return [], [Failed(cell, f"{deaths} workers died over it: {reason}") for cell in self.cells]
        warnings.warn(f"a worker died, another one samples its cells: {reason}", stacklevel=3)
        parts = [self.cells] if deaths < PATIENCE else [self.cells[half:], self.cells[:half]]
        return [replace(self, cells=cells, deaths=deaths) for cells in parts], []


def _by_workers(ray: Any, hire: Callable[[], Any], needs: dict[str, int], take: Take) -> Generator[Done, None, None]:
    """Keep every worker busy, replace those that die, and give what they were at to others."""
    places = _places(ray.nodes(), needs)
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, _Part | None]] = {}  # a reference to what will come -> from whom, of what
    again: list[_Part] = []
    done: defaultdict[Task, list[Sampled | Failed]] = defaultdict(list)
    loading_deaths = 0
    nobody_since: float | None = None

    def engage() -> None:
        worker = hire()
        busy[worker.load.remote()] = worker, None

    def held() -> bool:
        return bool(again) or any(part for _, part in busy.values())

    def next_part() -> _Part | None:
        if again:
            return again.pop()
        task = take(wait=not held())
        return _Part(task, task.cells) if task else None

    try:
        for _ in range(places):
            engage()
        while True:
            while idle and (part := next_part()):
                worker = idle.pop()
                busy[worker.sample.remote(part.cells, part.task.law)] = worker, part
            if idle and not held():
                return
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=_GLANCE)
            nobody_since = _without_nodes(ray.nodes(), needs, nobody_since)
            if not ready:
                continue
            worker, part = busy.pop(ready[0])
            made: Sequence[Sampled | Failed] = []
            try:
                made = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:  # what had been made is gone with whoever made it
                ray.kill(worker)
                engage()
                if part:
                    rest, made = part.after_death(_reason(error))
                    again += rest
                else:
                    loading_deaths += 1
                    _died_loading(loading_deaths, places, _reason(error))
            else:
                loading_deaths = 0
                idle.append(worker)
            if part:
                done[part.task] += made
                if len(done[part.task]) == len(part.task.cells):
                    yield part.task, done.pop(part.task)
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            ray.kill(worker)


def _died_loading(deaths: int, places: int, reason: str) -> None:
    """Say so.

    Raises:
        InputError: if all do.
    """
    if deaths >= PATIENCE * places:
        raise InputError(
            f"the workers die while they load the model: {reason} (every machine needs the packages that are here, the "
            "model, and memory for it)"
        )
    warnings.warn(f"a worker died while it loaded the model: {reason}", stacklevel=3)


def _room(nodes: list[dict[str, Any]], needs: dict[str, int]) -> int:
    """How many workers the nodes of a cluster have room for."""
    wanted = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"]}
    there = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(node.get(kind, 0)) // n for kind, n in wanted.items() if n) for node in there)


def _said(needs: dict[str, int]) -> str:
    return " and ".join(f"{n} {kind}s" for kind, n in (("CPU", needs["num_cpus"]), ("GPU", needs["num_gpus"])) if n)


def _places(nodes: list[dict[str, Any]], needs: dict[str, int]) -> int:
    """How many workers to hire.

    Raises:
        InputError: if there is room for none.
    """
    places = _room(nodes, needs)
    if not places:
        raise InputError(
            f"no node of the Ray cluster has {_said(needs)} for a worker: a worker on CPUs takes as many as torch has "
            "threads here (set OMP_NUM_THREADS to change it), one on a GPU takes one"
        )
    return places


def _without_nodes(nodes: list[dict[str, Any]], needs: dict[str, int], since: float | None) -> float | None:
    """Since when, on a monotonic clock, there is room for no worker; none if there is room.

    Ray puts the workers that are hired on a node by itself as soon as there is one.

    Raises:
        InputError: if that is `ABSENCE` seconds ago.
    """
    if _room(nodes, needs):
        return None
    now = time.monotonic()
    if since is None:
        warnings.warn(
            f"{time.strftime('%H:%M')}: the Ray cluster has lost all nodes with {_said(needs)} for a worker; the sweep "
            f"goes on when there is one again (ray start --address=...), and waits {ABSENCE / 60:g} minutes for it",
            stacklevel=3,
        )
        return now
    if now - since > ABSENCE:
        raise InputError(
            f"the Ray cluster has lost all nodes with {_said(needs)} for a worker, and got none in {ABSENCE / 60:g} "
            "minutes: what is sampled is kept; add a node (ray start --address=...), and the same command goes on"
        )
    return since


def _reason(error: Exception) -> str:
    """What a worker died of, in one line: what Ray says after a traceback or particulars, which are indented."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
    return textwrap.shorten(re.split(r"^[ \t].*\n(?=\S)", plain, flags=re.MULTILINE)[-1], 300, placeholder=" ...")


def _number_hooks_after_those_of(pipeline: Any) -> None:
    """Give the hooks of this process numbers that none of a pipeline from another process has.

    Torch counts them from 0 in every process, and a hook takes the place of one with the same number.
    """
    parts = getattr(pipeline, "components", {}).values()
    modules = (module for part in parts if isinstance(part, torch.nn.Module) for module in part.modules())
    hooks = (hooks for module in modules for name, hooks in vars(module).items() if name.endswith("_hooks"))
    taken = (number for numbered in hooks for number in numbered)
    RemovableHandle.next_id = max(RemovableHandle.next_id, 1 + max(taken, default=-1))


def _resolved(model: str) -> str:
    """A folder by its whole path: workers start elsewhere."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def _sent(ray: Any, pipeline: Any) -> Any:
    """A pipeline in the object store.

    Raises:
        InputError: if it cannot be sent.
    """
    try:
        return ray.put(pipeline)
    except (TypeError, AttributeError, PicklingError) as error:
        raise InputError(
            f"this pipeline cannot be sent to workers ({error}): name its model, engine=RayEngine(model=...)"
        ) from error


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connected for as long as it takes; a connection that was there before is kept."""
    ray = _ray()
    before = ray.is_initialized()
    try:
        _connect(address)
        yield ray
    finally:
        if not before:
            ray.shutdown()


def _connect(address: str | None) -> Any:
    """The module `ray`, connected.

    Raises:
        InputError: if Ray is not installed, or there is no cluster at the address.
    """
    ray = _ray()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is measured here is nobody else's business
        settings = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        try:
            # Workers look here first, and sources may lie where the user stands. An interrupted `init` leaves C++ half
            # made, which then breaks the end of the process, and processes that nobody ends.
            with chdir(Path(__file__).parents[2]), held_back():
                ray.init(address=address, **settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"cannot reach a Ray cluster at {address or 'this machine'}: {error}") from error
    return ray


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError("this engine needs Ray: pip install '.[ray]' in the clone of entropy-probe") from error
