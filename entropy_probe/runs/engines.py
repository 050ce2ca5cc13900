"""Engines: where the cells of a sweep are sampled. `LocalEngine` samples in this process."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from entropy_probe.laws import ScalingLaw
from entropy_probe.runs.grid import Cell
from entropy_probe.runs.manifest import Manifest
from entropy_probe.runs.sampling import FailedCell, SampledCell, sample_cells


@dataclass(frozen=True, eq=False)
class Task:
    """A batch of cells of one size and law, and further arguments of the pipeline's call."""

    cells: tuple[Cell, ...]
    law: ScalingLaw
    pipeline_kwargs: Mapping[str, Any] = field(default_factory=dict)


class TakeTask(Protocol):
    """Function that returns the next task of a sweep."""

    def __call__(self, *, wait: bool) -> Task | None:
        """Return the next task, or None if none is available.

        Args:
            wait: wait for tasks that other processes have locked. None then means that the sweep is finished. Do not
                wait while holding a task: two processes that hold a task and wait would wait forever.
        """
        ...


TaskResult = tuple[Task, Iterable[SampledCell | FailedCell]]
"""A task and the output of `sample_cells`."""


class Engine(Protocol):
    """Interface of all engines."""

    def sample(self, pipeline: Any, manifest: Manifest, take: TakeTask) -> Generator[TaskResult, None, None]:
        """Sample all tasks, in any order. A task stays locked until the caller requests the next result."""
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Samples in this process."""

    def sample(self, pipeline: Any, manifest: Manifest, take: TakeTask) -> Generator[TaskResult, None, None]:
        """Sample all tasks, one after another."""
        while task := take(wait=True):
            yield task, sample_cells(pipeline, list(task.cells), task.law, manifest, task.pipeline_kwargs)
