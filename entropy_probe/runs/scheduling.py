"""Sample the missing cells of a grid, while other processes may work on the same run directory."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing, nullcontext, suppress
from typing import Any

from entropy_probe.errors import IncompleteError, InputError
from entropy_probe.interruption import delay_interrupt
from entropy_probe.models import format_size
from entropy_probe.progress import Advance
from entropy_probe.progress import progress as show_progress
from entropy_probe.runs.directory import CellState, RunDirectory
from entropy_probe.runs.engines import Engine, Task
from entropy_probe.runs.grid import Cell, Grid, batches, law_id, select_shard
from entropy_probe.runs.manifest import Manifest
from entropy_probe.runs.sampling import FailedCell, SampledCell


def sample_missing(
    run: RunDirectory,
    grid: Grid,
    manifest: Manifest,
    pipeline: Any,
    engine: Engine,
    *,
    batch: int,
    shard: tuple[int, int] = (1, 1),
    progress: bool | str = True,
    pipeline_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Sample the cells of a grid that are not on disk.

    Args:
        run: the run directory.
        grid: the grid.
        manifest: settings of the run.
        pipeline: the pipeline.
        engine: engine that samples.
        batch: images per batch at the training size.
        shard: (i, n) samples the i-th of n parts of the grid.
        progress: show a progress bar; see `sweep`.
        pipeline_kwargs: further arguments of the pipeline's call.

    Raises:
        IncompleteError: after all other cells are sampled, if some cells failed.
    """
    trained = manifest.training_size
    cells = list(itertools.chain(*select_shard(list(batches(list(grid.cells()), batch, trained)), *shard)))
    states = {cell: run.state(cell) for cell in cells}
    for cell in (cell for cell, state in states.items() if state.fault == "damaged"):
        warnings.warn(f"cell {cell.name} is damaged and will be sampled again", stacklevel=4)
    missing = [cell for cell, state in states.items() if state.fault]
    failures: list[FailedCell] = []
    if missing:
        incomplete = _incomplete_batches(states)
        others = set(missing).difference(*incomplete)
        todo = [*incomplete, *batches([cell for cell in missing if cell in others], batch, trained)]
        done, work = len(cells) - len(missing), sum(math.prod(cell.size) for cell in missing)
        with (
            show_progress(len(cells), "sampling cells", done=done, work=work, shown=progress) as advance,
            _TaskQueue(run, grid, todo, set(missing), advance, pipeline_kwargs or {}) as queue,
            closing(engine.sample(pipeline, manifest, queue.take)) as sampled,
        ):
            for task, results in sampled:
                failures += queue.save(task, results)
    with delay_interrupt():
        run.remove_leftovers()
        failed = {failure.cell for failure in failures}
        # A process may have been killed after its last cell. A finished run may be in a read-only folder.
        with nullcontext() if missing else suppress(InputError, OSError):
            run.index([cell for cell in cells if cell not in failed])
    if failures:
        raise IncompleteError(
            f"{len(failures)} of {len(cells)} cells failed, the first with: {failures[0].reason}. The other cells are "
            f"in {run.path}: rerun the same command with more memory to retry the failed cells",
            failures[0].reason,
        )


def _incomplete_batches(states: dict[Cell, CellState]) -> list[list[Cell]]:
    """Return the batches that have some of their cells on disk and lack others.

    The batch influences the last digits of the records and the choice of query rows. A lost cell is therefore sampled
    again in its original batch.
    """
    by_name = {cell.name: cell for cell in states}
    recorded = dict.fromkeys(state.batch for state in states.values() if not state.fault)
    known = [[by_name[name] for name in names] for names in recorded if all(name in by_name for name in names)]
    return [cells for cells in known if any(states[cell].fault for cell in cells)]


class _TaskQueue:
    """The batches left to sample. A batch is locked when it is taken and released when its results are saved.

    Args:
        run: the run directory.
        grid: the grid.
        todo: batches to sample.
        missing: cells that are not on disk. A batch may also contain other cells.
        advance: function that records progress.
        pipeline_kwargs: further arguments of the pipeline's call.
    """

    def __init__(
        self,
        run: RunDirectory,
        grid: Grid,
        todo: Iterable[list[Cell]],
        missing: set[Cell],
        advance: Advance,
        pipeline_kwargs: Mapping[str, Any],
    ) -> None:
        self._pipeline_kwargs = pipeline_kwargs
        self._run, self._todo, self._missing, self._advance = run, deque(todo), missing, advance
        self._laws = {law_id(law): law for law in grid.laws}
        self._taken: dict[Task, tuple[set[Cell], ExitStack]] = {}

    def __enter__(self) -> _TaskQueue:
        return self

    def __exit__(self, *_: object) -> None:
        with delay_interrupt():
            for _missing, locks in self._taken.values():
                locks.close()

    def take(self, *, wait: bool) -> Task | None:
        """Return a task that no other process has locked, then tasks that others did not finish; see `TakeTask`."""
        while True:
            for _ in range(len(self._todo)):
                with delay_interrupt():
                    task = self._lock_task(self._todo.popleft(), wait=False)
                if task:
                    return task
            if not (wait and self._todo):
                return None
            if task := self._lock_task(self._todo.popleft(), wait=True):
                return task

    def save(self, task: Task, results: Iterable[SampledCell | FailedCell]) -> list[FailedCell]:
        """Write the results of a task that are not on disk yet. Return the cells that failed."""
        missing, locks = self._taken[task]
        failures = []
        for result in results:
            if result.cell not in missing:
                continue
            with delay_interrupt():
                if isinstance(result, FailedCell):
                    self._run.save_failure(result.cell, result.reason)
                    failures.append(result)
                else:
                    self._run.save(result.cell, result.frame, result.clip, result.batch)
        with delay_interrupt():
            locks.close()
            del self._taken[task]
        self._record([cell for cell in task.cells if cell in self._missing])
        return failures

    def _lock_task(self, cells: list[Cell], *, wait: bool) -> Task | None:
        """Lock a batch and return it as a task. Return None if another process has locked or finished it."""
        to_lock = [cell for cell in cells if cell in self._missing]
        with ExitStack() as locks:
            if not locks.enter_context(self._run.lock(to_lock, wait=wait)):
                self._todo.append(cells)
                return None
            missing = {cell for cell in cells if self._run.state(cell).fault}
            if missing:
                task = Task(tuple(cells), self._laws[cells[0].law_id], self._pipeline_kwargs)
                self._taken[task] = missing, locks.pop_all()
                return task
        self._record(to_lock)
        return None

    def _record(self, cells: list[Cell]) -> None:
        work = sum(math.prod(cell.size) for cell in cells)
        self._advance(len(cells), f"{cells[0].law} {format_size(cells[0].size)}", work)
