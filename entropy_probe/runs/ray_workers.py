"""Workers on a Ray cluster: sampling in a remote process, and replacing workers that die."""

from __future__ import annotations

import re
import textwrap
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from entropy_probe.errors import InputError
from entropy_probe.laws import ScalingLaw
from entropy_probe.models import ModelSource, fingerprint, fingerprint_version, quiet_libraries
from entropy_probe.runs.engines import TakeTask, Task, TaskResult
from entropy_probe.runs.grid import Cell
from entropy_probe.runs.manifest import Manifest
from entropy_probe.runs.sampling import FailedCell, SampledCell, sample_cells

MAX_DEATHS = 3
"""Workers that may die on one batch. The batch is then halved, and a single cell is recorded as failed."""

NODE_TIMEOUT = 600
"""Seconds that a sweep waits for a new node after the last one was lost."""

_POLL_INTERVAL = 5
"""Seconds between two checks of the nodes."""


class Worker:
    """Holds a pipeline in its own process. It is an actor, so the weights are loaded once."""

    def __init__(self, source: Any, device: str, threads: int | None, manifest: Manifest) -> None:
        if threads:
            torch.set_num_threads(threads)  # the number of threads influences the last digits
        self._source, self._device, self._manifest = source, device, manifest
        self._pipeline: Any = None

    def load(self) -> None:
        """Load the pipeline. An error in the constructor would reach the driver only as text."""
        quiet_libraries()
        if isinstance(self._source, str | ModelSource):
            source = ModelSource(self._source) if isinstance(self._source, str) else self._source
            self._pipeline = source.load(device=self._device, dtype=self._manifest.dtype)
        else:
            _avoid_hook_id_clash(self._source)
            self._pipeline = self._source.to(self._device)
        expected = self._manifest.fingerprint
        if fingerprint(self._pipeline, fingerprint_version(expected)) != expected:
            raise InputError(f"a worker loaded another model as {self._source!r} than this process")

    def sample(
        self, cells: Sequence[Cell], law: ScalingLaw, pipeline_kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> list[SampledCell | FailedCell]:
        """Sample cells; see `sample_cells`."""
        return list(sample_cells(self._pipeline, list(cells), law, self._manifest, pipeline_kwargs))


@dataclass(frozen=True, eq=False)
class Assignment:
    """Cells of a task for one worker: all of them, or fewer after workers died.

    Attributes:
        task: the task.
        cells: cells to sample in one batch.
        deaths: number of workers that died while they sampled these cells.
    """

    task: Task
    cells: tuple[Cell, ...]
    deaths: int = 0

    def after_death(self, reason: str) -> tuple[list[Assignment], list[FailedCell]]:
        """Return the assignments to retry and the cells that failed, after one more worker died."""
        deaths, half = self.deaths + 1, len(self.cells) // 2
        if deaths >= MAX_DEATHS and not half:
            return [], [FailedCell(cell, f"{deaths} workers died while sampling it: {reason}") for cell in self.cells]
        warnings.warn(f"a worker died; another worker samples its cells: {reason}", stacklevel=3)
        parts = [self.cells] if deaths < MAX_DEATHS else [self.cells[half:], self.cells[:half]]
        return [replace(self, cells=cells, deaths=deaths) for cells in parts], []


class WorkerPool:
    """Assigns tasks to workers, and replaces workers that die.

    Args:
        ray: the module `ray`, connected to a cluster.
        start_worker: function that starts a worker and returns its handle.
        requirements: `num_cpus` and `num_gpus` of one worker.
        take: function that returns the next task.

    Raises:
        InputError: if no node can run a worker.
    """

    def __init__(self, ray: Any, start_worker: Callable[[], Any], requirements: dict[str, int], take: TakeTask) -> None:
        self._ray, self._start_worker, self._requirements, self._take = ray, start_worker, requirements, take
        self._size = worker_count(ray.nodes(), requirements)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Assignment | None]] = {}  # object reference -> worker and its assignment
        self._retry: list[Assignment] = []
        self._results: defaultdict[Task, list[SampledCell | FailedCell]] = defaultdict(list)
        self._deaths_while_loading = 0

    def run(self) -> Generator[TaskResult, None, None]:
        """Sample all tasks. The workers are stopped when the generator ends.

        Raises:
            InputError: if the workers cannot load the model, or no node is left.
        """
        nodes_lost_at: float | None = None
        try:
            for _ in range(self._size):
                self._add_worker()
            while True:
                self._assign()
                if self._idle and not self._has_work():
                    return
                ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=_POLL_INTERVAL)
                nodes_lost_at = check_nodes(self._ray.nodes(), self._requirements, nodes_lost_at)
                for reference in ready:
                    yield from self._collect(reference)
        finally:
            for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
                self._ray.kill(worker)

    def _add_worker(self) -> None:
        worker = self._start_worker()
        self._busy[worker.load.remote()] = worker, None

    def _has_work(self) -> bool:
        return bool(self._retry) or any(assignment for _, assignment in self._busy.values())

    def _assign(self) -> None:
        while self._idle and (assignment := self._next_assignment()):
            worker = self._idle.pop()
            task = assignment.task
            self._busy[worker.sample.remote(assignment.cells, task.law, task.pipeline_kwargs)] = worker, assignment

    def _next_assignment(self) -> Assignment | None:
        if self._retry:
            return self._retry.pop()
        task = self._take(wait=not self._has_work())
        return Assignment(task, task.cells) if task else None

    def _collect(self, reference: Any) -> Generator[TaskResult, None, None]:
        """Receive the result of a worker. Yield the task if it is complete."""
        worker, assignment = self._busy.pop(reference)
        results: Sequence[SampledCell | FailedCell] = []
        try:
            results = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:  # the worker died, and its results are lost
            results = self._replace(worker, assignment, short_reason(error))
        else:
            self._deaths_while_loading = 0
            self._idle.append(worker)
        if assignment:
            task = assignment.task
            self._results[task] += results
            if len(self._results[task]) == len(task.cells):
                yield task, self._results.pop(task)

    def _replace(self, worker: Any, assignment: Assignment | None, reason: str) -> list[FailedCell]:
        """Start a new worker for one that died. Return the cells that failed for good."""
        self._ray.kill(worker)
        self._add_worker()
        if assignment is None:
            self._deaths_while_loading += 1
            _report_death_while_loading(self._deaths_while_loading, self._size, reason)
            return []
        retry, failed = assignment.after_death(reason)
        self._retry += retry
        return failed


def worker_count(nodes: list[dict[str, Any]], requirements: dict[str, int]) -> int:
    """Return the number of workers that a cluster can run.

    Raises:
        InputError: if it is 0.
    """
    count = _capacity(nodes, requirements)
    if not count:
        raise InputError(
            f"no node of the Ray cluster has {_describe(requirements)} for a worker: add a node. A CPU worker uses as "
            "many CPUs as torch has threads in this process (set OMP_NUM_THREADS to change it), a GPU worker one CPU "
            "and one GPU"
        )
    return count


def check_nodes(nodes: list[dict[str, Any]], requirements: dict[str, int], lost_at: float | None) -> float | None:
    """Return the time (monotonic clock) since which no node can run a worker, or None if one can.

    Ray starts the waiting workers when a new node joins.

    Raises:
        InputError: if `NODE_TIMEOUT` seconds have passed.
    """
    if _capacity(nodes, requirements):
        return None
    now = time.monotonic()
    lost = f"the Ray cluster has lost all nodes with {_describe(requirements)} for a worker"
    if lost_at is None:
        warnings.warn(
            f"{time.strftime('%H:%M')}: {lost}. The sweep waits {NODE_TIMEOUT / 60:g} minutes for a new node: add one "
            "with ray start --address=...",
            stacklevel=3,
        )
        return now
    if now - lost_at > NODE_TIMEOUT:
        raise InputError(
            f"{lost}, and no new one joined in {NODE_TIMEOUT / 60:g} minutes. Finished cells are kept: add a node (ray "
            "start --address=...) and rerun the same command to resume"
        )
    return lost_at


def short_reason(error: Exception) -> str:
    """Return the cause of a worker's death in one line, without tracebacks and details, which Ray indents."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
    return textwrap.shorten(re.split(r"^[ \t].*\n(?=\S)", plain, flags=re.MULTILINE)[-1], 300, placeholder=" ...")


def _report_death_while_loading(deaths: int, workers: int, reason: str) -> None:
    """Warn, or raise an InputError if all workers die."""
    if deaths >= MAX_DEATHS * workers:
        raise InputError(
            f"the workers die while loading the model: {reason} (every machine needs the same packages as this one, "
            "the model, and enough memory for it)"
        )
    warnings.warn(f"a worker died while loading the model: {reason}", stacklevel=4)


def _capacity(nodes: list[dict[str, Any]], requirements: dict[str, int]) -> int:
    needed = {"CPU": requirements["num_cpus"], "GPU": requirements["num_gpus"]}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(node.get(kind, 0)) // n for kind, n in needed.items() if n) for node in alive)


def _describe(requirements: dict[str, int]) -> str:
    needed = (("CPU", requirements["num_cpus"]), ("GPU", requirements["num_gpus"]))
    return " and ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in needed if n)


def _avoid_hook_id_clash(pipeline: Any) -> None:
    """Make new hooks of this process get ids that no hook of a received pipeline has.

    Torch numbers hooks from 0 in every process, and a hook replaces one with the same id.
    """
    parts = getattr(pipeline, "components", {}).values()
    modules = (module for part in parts if isinstance(part, torch.nn.Module) for module in part.modules())
    hooks = (hooks for module in modules for name, hooks in vars(module).items() if name.endswith("_hooks"))
    used = (number for by_id in hooks for number in by_id)
    RemovableHandle.next_id = max(RemovableHandle.next_id, 1 + max(used, default=-1))
