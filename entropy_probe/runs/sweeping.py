"""`sweep`: sample every cell of a grid with probes on, into a run directory that can be taken up again."""

from __future__ import annotations

import io
import itertools
import math
import os
import platform
import tempfile
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from PIL import Image

from entropy_probe.attention import Rows, find_denoiser
from entropy_probe.errors import IncompleteError, InputError
from entropy_probe.interruption import held_back
from entropy_probe.laws import ScalingLaw, check_unscaled
from entropy_probe.models import (
    Size,
    check_guidance,
    check_size,
    check_steps,
    fingerprint,
    format_size,
    training_size,
)
from entropy_probe.progress import Advance
from entropy_probe.progress import progress as show_progress
from entropy_probe.runs.directory import Manifest, RunDirectory, State
from entropy_probe.runs.engines import Engine, LocalEngine, RayEngine, Task
from entropy_probe.runs.files import place
from entropy_probe.runs.grid import Cell, Grid, batches, law_id, share
from entropy_probe.runs.sampling import Failed, Sampled
from entropy_probe.statistics.cpu import KERNELS
from entropy_probe.version import __version__
from entropy_probe.views import Viewed

CURVE = (0.2, 0.4, 0.65, 1.5, 2.3, 4.0)
"""Values of g, besides 1, at which the curve H(g) of every visual attention layer is measured."""


@dataclass(frozen=True)
class Sweep(Viewed):
    """A finished sweep: its grid, and its tables and images on disk.

    Attributes:
        grid: prompts, sizes, seeds and laws.
        run: the run directory.
        manifest: the model and the settings.
        pipeline: the pipeline that was sampled, if it is at hand.
        engine: where what is sampled further is sampled.
    """

    grid: Grid
    run: RunDirectory
    manifest: Manifest
    pipeline: Any = field(default=None, repr=False, compare=False)
    engine: Engine = field(default=LocalEngine(), repr=False, compare=False)
    _keep: Any = field(default=None, repr=False, compare=False)

    def frame(self, *, curves: bool = False) -> pd.DataFrame:
        """The tidy table of all cells, a row per call, batch item and head; entropies in nats.

        Args:
            curves: include the rows measured at other scale_factors than the model's own.
        """
        frame = self.run.read(self.grid.cells())
        return frame if curves else frame[frame["scale_factor"] == 1.0].reset_index(drop=True)

    @classmethod
    def open(cls, path: str | Path, pipeline: Any = None) -> Sweep:
        """A sweep from its run directory.

        Args:
            path: the run directory, a folder or the URL of one.
            pipeline: the model, for stages that sample again.

        Raises:
            InputError: if the folder is no run, cells are missing, or the pipeline is another model.
        """
        run = RunDirectory(place(path))
        manifest = run.manifest()
        grid = _grid(run)
        if pipeline is not None and fingerprint(pipeline) != manifest.fingerprint:
            raise InputError(f"{path} was sampled from another model ({manifest.model})")
        missing = [cell for cell in grid.cells() if run.state(cell).fault]
        if failed := run.failures(missing):
            sizes = ", ".join(map(format_size, dict.fromkeys(cell.size for cell in failed)))
            reason = next(iter(failed.values()))
            raise InputError(
                f"{len(failed)} of the {len(grid)} cells of {path} failed, the first {reason}: run the sweep again "
                f"where there is more memory, or without {sizes}, and it keeps what is done"
            )
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(grid)} cells of {path} are missing or damaged: run the sweep again to "
                "finish it"
            )
        return cls(grid, run, manifest, pipeline)

    def image(self, prompt: str, size: Size, seed: int, law: str = "original") -> Image.Image:
        """The image of a cell.

        Raises:
            InputError: if the grid has no such cell.
        """
        path = self.run.image_path(self.grid.cell(prompt, size, seed, law))
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return image.convert("RGB")


def sweep(
    pipeline: Any,
    *,
    prompts: Sequence[str],
    sizes: Sequence[Size],
    seeds: Sequence[int] = (0,),
    laws: Sequence[ScalingLaw | str | Path] = ("original",),
    steps: int = 20,
    guidance_scale: float = 7.5,
    store: str | Path | None = None,
    model: str | None = None,
    rows: Rows = "auto",
    scale_factors: Sequence[float] = CURVE,
    batch: int = 8,
    shard: tuple[int, int] = (1, 1),
    engine: Engine | Literal["local", "ray"] = "local",
    progress: bool = True,
) -> Sweep:
    """Sample prompts x sizes x seeds x laws, with every attention layer captured.

    Started again on the same `store`, it samples only the cells that are not there yet. Several processes may work on
    one store at once: no cell is sampled twice, and what a process that died had begun is done by another.

    Args:
        pipeline: a diffusers text-to-image pipeline.
        prompts: texts.
        sizes: (height, width) in pixels.
        seeds: one image each, for every prompt and size.
        laws: scaling laws to sample under, by name, file or as they are.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance; 1 turns it off.
        store: the run directory, a folder or a URL that fsspec knows; a temporary one, gone with the returned sweep, if
            none is given.
        model: the name that the manifest gives the model, to load it again from.
        rows: attention rows measured per call: "auto", "all" or a number, as `capture` takes it.
        scale_factors: values of g of the measured curves H(g), besides 1; see `capture`.
        batch: images sampled at once at the training size; larger sizes take proportionally fewer.
        shard: (i, n) samples the i-th of n parts of the grid, counted from 1; the sweep is whole when all n are done.
        engine: where the cells are sampled: "local" in this process, "ray" on a Ray cluster, see `RayEngine`.
        progress: show a progress bar with the time left.

    Raises:
        IncompleteError: when all else is done, if the memory did not suffice for some cells.
        InputError: for an empty or repeated list, a size the pipeline cannot draw, steps below 1, a store that
            belongs to another model or other settings, or a pipeline that has a law applied.
    """
    check_unscaled(pipeline)
    grid = Grid.of(prompts, sizes, seeds, laws)
    for size in grid.sizes:
        check_size(pipeline, size)
    check_steps(pipeline, steps)
    check_guidance(guidance_scale)
    where = _engine(engine)
    manifest = Manifest(
        model=model or str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__),
        fingerprint=fingerprint(pipeline),
        pipeline=type(pipeline).__name__,
        dtype=str(find_denoiser(pipeline).dtype).removeprefix("torch."),
        training_size=training_size(pipeline),
        steps=steps,
        guidance_scale=float(guidance_scale),
        rows=rows,
        scale_factors=tuple(scale_factors),
        versions=versions(),
        hardware=hardware(),
    )
    keep = None
    if store is None:
        keep = tempfile.TemporaryDirectory(prefix="entropy-probe-")
        store = keep.name
    run = RunDirectory(place(store))
    run.create(manifest)

    run.write("grid.json", grid.to_json())
    made = Sweep(grid, run, manifest, pipeline, where, keep)
    _fill(made, batch, progress, shard)
    return made


def extend(
    base: Sweep,
    *,
    laws: Sequence[ScalingLaw | str | Path],
    sizes: Sequence[Size] | None = None,
    seeds: Sequence[int] | None = None,
    batch: int = 8,
    progress: bool = True,
) -> Sweep:
    """Sample the prompts of a sweep under other laws, into the same run directory.

    Args:
        base: a sweep with its pipeline at hand.
        laws: scaling laws to sample under.
        sizes: those of the sweep, if none are given.
        seeds: those of the sweep, if none are given.
        batch: see `sweep`.
        progress: see `sweep`.

    Raises:
        InputError: if the sweep was opened without a pipeline, or that has a law applied.
    """
    if base.pipeline is None:
        raise InputError("sampling again needs the model: open the run with its pipeline, Sweep.open(path, pipeline)")
    check_unscaled(base.pipeline)
    grid = Grid.of(base.grid.prompts, sizes or base.grid.sizes, seeds or base.grid.seeds, laws)
    made = replace(base, grid=grid)
    _fill(made, batch, progress)
    return made


def _fill(made: Sweep, batch: int, progress: bool, shard: tuple[int, int] = (1, 1)) -> None:
    """Sample the cells of a sweep that are not on disk yet, beside others that do the same.

    Raises:
        IncompleteError: when all else is done, if the memory did not suffice for some cells.
    """
    trained = made.manifest.training_size
    cells = list(itertools.chain(*share(list(batches(list(made.grid.cells()), batch, trained)), *shard)))
    states = {cell: made.run.state(cell) for cell in cells}
    for cell in (cell for cell, state in states.items() if state.fault == "damaged"):
        warnings.warn(f"cell {cell.name} is damaged and will be sampled again", stacklevel=3)
    missing = [cell for cell, state in states.items() if state.fault]
    if not missing:
        made.run.tidy()
        return
    begun = _begun(states)
    fresh = set(missing).difference(*begun)
    left = [*begun, *batches([cell for cell in missing if cell in fresh], batch, trained)]
    failures: list[Failed] = []
    done, work = len(cells) - len(missing), sum(math.prod(cell.size) for cell in missing)
    with (
        show_progress(len(cells), "sampling cells", done=done, work=work, shown=progress) as advance,
        _Tasks(made, left, set(missing), advance) as tasks,
        closing(made.engine.sample(made.pipeline, made.manifest, tasks.take)) as sampled,
    ):
        for task, results in sampled:
            failures += tasks.keep(task, results)
    with held_back():
        made.run.tidy()
    if failures:
        raise IncompleteError(
            f"{len(failures)} of {len(cells)} cells failed, the first {failures[0].reason}; the others are in "
            f"{made.run.path}: the same command tries the failed ones again, where there is more memory",
            failures[0].reason,
        )


def _begun(states: dict[Cell, State]) -> list[list[Cell]]:
    """The batches of which some cells are there and others are not.

    What is sampled beside a cell decides the last digits of its records, and which rows of a large image are
    measured: one that was lost is sampled again in the company that it had.
    """
    known = {cell.name: cell for cell in states}
    companies = dict.fromkeys(state.batch for state in states.values() if not state.fault)
    batches = [[known[name] for name in names] for names in companies if all(name in known for name in names)]
    return [cells for cells in batches if any(states[cell].fault for cell in cells)]


class _Tasks:
    """The batches that are left of a sweep: claimed when they are taken, free again when their results are kept."""

    def __init__(self, made: Sweep, left: Iterable[list[Cell]], wanted: set[Cell], advance: Advance) -> None:
        self._made, self._left, self._wanted, self._advance = made, deque(left), wanted, advance
        self._taken: dict[Task, tuple[set[Cell], ExitStack]] = {}

    def __enter__(self) -> _Tasks:
        return self

    def __exit__(self, *_: object) -> None:
        with held_back():
            for _missing, claim in self._taken.values():
                claim.close()

    def take(self, *, wait: bool) -> Task | None:
        """First what nobody else is at, then what the others did not finish; see `engines.Take`."""
        while True:
            for _ in range(len(self._left)):
                with held_back():
                    task = self._claimed(self._left.popleft(), wait=False)
                if task:
                    return task
            if not (wait and self._left):
                return None
            if task := self._claimed(self._left.popleft(), wait=True):
                return task

    def keep(self, task: Task, results: Iterable[Sampled | Failed]) -> list[Failed]:
        """Write those results of a task that nobody has written yet, and return what failed."""
        missing, claim = self._taken[task]
        run, failures = self._made.run, []
        for done in results:
            if done.cell not in missing:
                continue
            with held_back():
                if isinstance(done, Failed):
                    run.fail(done.cell, done.reason)
                    failures.append(done)
                else:
                    run.save(done.cell, done.frame, done.image, done.batch)
        with held_back():
            claim.close()
            del self._taken[task]
        self._tell(self._own(task.cells))
        return failures

    def _claimed(self, part: list[Cell], *, wait: bool) -> Task | None:
        """A batch as a task; none if somebody else is at it, who may fail, or has done it."""
        own = self._own(part)
        with ExitStack() as claim:
            if not claim.enter_context(self._made.run.claim(own, wait=wait)):
                self._left.append(part)
                return None
            missing = {cell for cell in part if self._made.run.state(cell).fault}
            if missing:
                law = next(law for law in self._made.grid.laws if law_id(law) == part[0].law_id)
                task = Task(tuple(part), law)
                self._taken[task] = missing, claim.pop_all()
                return task
        self._tell(own)
        return None

    def _tell(self, cells: list[Cell]) -> None:
        work = sum(math.prod(cell.size) for cell in cells)
        self._advance(len(cells), f"{cells[0].law} {format_size(cells[0].size)}", work)

    def _own(self, cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if cell in self._wanted]


def _grid(run: RunDirectory) -> Grid:
    try:
        return Grid.from_json(run.read_text("grid.json"))
    except InputError as error:
        raise InputError(f"{run.path / 'grid.json'}: {error}; the same sweep into its folder writes it anew") from error


def _engine(engine: Engine | str) -> Engine:
    """An engine by its name.

    Raises:
        InputError: for any other name.
    """
    known: dict[str, Engine] = {"local": LocalEngine(), "ray": RayEngine()}
    if not isinstance(engine, str):
        return engine
    if engine not in known:
        raise InputError(f"engine must be {' or '.join(known)}, not {engine!r}")
    return known[engine]


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, down to the last digits."""
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    kernel = {"CPU kernel": " and ".join(name.lstrip("_") for name in KERNELS) or "none"}
    return {"entropy-probe": __version__, "python": platform.python_version(), **libraries, **kernel}


def hardware() -> str:
    """The device that samples."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
