"""`sweep`: sample every cell of a grid, measuring every attention layer, into a run directory that can be resumed."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from PIL import Image

from entropy_probe.attention import Rows, check_frames, default_frames, find_denoiser
from entropy_probe.deprecation import renamed_arguments
from entropy_probe.errors import InputError
from entropy_probe.laws import ScalingLaw, check_unscaled
from entropy_probe.models import (
    FINGERPRINT_VERSION,
    Clip,
    Size,
    check_call,
    check_size,
    confounders,
    describe,
    fingerprint,
    fingerprint_version,
    format_size,
    from_png,
    sampling_settings,
    takes_prompt,
    training_size,
)
from entropy_probe.runs.directory import RunDirectory
from entropy_probe.runs.engines import Engine, LocalEngine
from entropy_probe.runs.environment import hardware, versions
from entropy_probe.runs.files import open_location
from entropy_probe.runs.grid import Grid
from entropy_probe.runs.manifest import Manifest
from entropy_probe.runs.model_location import name_model, path_from_run
from entropy_probe.runs.ray_engine import RayEngine
from entropy_probe.runs.scheduling import sample_missing
from entropy_probe.views import Viewed

CURVE_SCALE_FACTORS = (0.2, 0.4, 0.65, 1.5, 2.3, 4.0)
"""Values of g, in addition to 1, at which the curve H(g) of every attention layer over the image is measured."""

NO_PROMPT = "(no prompt)"
"""Prompt of the cells of a pipeline without prompts."""


@dataclass(frozen=True)
class Sweep(Viewed):
    """A sweep: its grid, and its tables and images on disk.

    Attributes:
        grid: prompts, sizes, seeds and laws.
        run: the run directory.
        manifest: model and settings.
        pipeline: the pipeline that was sampled, or None if the run was opened without it.
        engine: engine that samples further cells.
        pipeline_kwargs: further arguments of the pipeline's call.
    """

    grid: Grid
    run: RunDirectory
    manifest: Manifest
    pipeline: Any = field(default=None, repr=False, compare=False)
    engine: Engine = field(default=LocalEngine(), repr=False, compare=False)
    pipeline_kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _temporary: Any = field(default=None, repr=False, compare=False)

    def frame(self, *, curves: bool = False) -> pd.DataFrame:
        """Return the table of all cells: one row per attention call, batch item and head. Entropies are in nats.

        Args:
            curves: include the rows of the measured curves H(g), with `scale_factor` other than 1.

        Raises:
            InputError: if a cell is missing or damaged.
        """
        return self.run.read(self.grid.cells(), curves=curves)

    @classmethod
    def open(cls, path: str | Path, pipeline: Any = None, *, pipeline_kwargs: Mapping[str, Any] | None = None) -> Sweep:
        """Open a run directory. Nothing is written.

        Args:
            path: folder or URL.
            pipeline: the model. Stages that sample again need it.
            pipeline_kwargs: the further arguments of the pipeline's call, if the run has them; needed as `pipeline`.

        Raises:
            InputError: if the folder is not a run directory, cells are missing, the pipeline is another model, or it
                is given without the arguments with which the run was sampled.
        """
        run = RunDirectory(open_location(path))
        manifest = run.manifest()
        grid = _read_grid(run)
        if pipeline is not None and manifest.fingerprint != fingerprint(
            pipeline, fingerprint_version(manifest.fingerprint)
        ):
            raise InputError(f"{path} was sampled from another model ({manifest.model}): load that model")
        if pipeline is not None and describe(pipeline_kwargs or {}) != manifest.pipeline_kwargs:
            values = ", ".join(f"{name} ({what})" for name, what in manifest.pipeline_kwargs.items())
            raise InputError(f"{path} was sampled with pipeline_kwargs {values or 'empty'}: pass the same")
        if pipeline is not None and training_size(pipeline) != manifest.training_size:
            size = format_size(manifest.training_size)
            raise InputError(
                f"{run.manifest_path} was edited: its training size is {size}, the model's is "
                f"{format_size(training_size(pipeline))}. Correct it"
            )
        missing = [cell for cell in grid.cells() if run.state(cell).fault]
        if failed := run.failures(missing):
            sizes = ", ".join(map(format_size, dict.fromkeys(cell.size for cell in failed)))
            reason = next(iter(failed.values()))
            raise InputError(
                f"{len(failed)} of the {len(grid)} cells of {path} failed, the first with: {reason}. Rerun the sweep "
                f"with more memory, or without {sizes}; finished cells are kept"
            )
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(grid)} cells of {path} are missing or damaged: rerun the sweep"
            )
        return cls(grid, run, manifest, pipeline, pipeline_kwargs=pipeline_kwargs or {})

    def image(self, prompt: str, size: Size, seed: int, law: str = "original") -> Image.Image:
        """Return the image of a cell; of a video, its middle frame.

        Args:
            prompt: text.
            size: (height, width) in pixels.
            seed: seed of the initial noise.
            law: name of the scaling law.

        Raises:
            InputError: if the grid does not have the cell.
        """
        path = self.run.image_path(self.grid.cell(prompt, size, seed, law))
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return image.convert("RGB")

    def frames(self, prompt: str, size: Size, seed: int, law: str = "original") -> Clip:
        """Return the frames of the video of a cell; one frame for an image. The arguments are those of `image`.

        Raises:
            InputError: if the grid does not have the cell.
        """
        return from_png(self.run.image_path(self.grid.cell(prompt, size, seed, law)).read_bytes())


@renamed_arguments(multipliers="scale_factors")
def sweep(
    pipeline: Any, *, prompts: Sequence[str] | None = None, sizes: Sequence[Size], seeds: Sequence[int] = (0,),
    laws: Sequence[ScalingLaw | str | Path] = ("original",), steps: int | None = None,
    guidance_scale: float | None = None, store: str | Path | None = None, model: str | None = None,
    rows: Rows = "auto", scale_factors: Sequence[float] = CURVE_SCALE_FACTORS, batch: int = 8,
    shard: tuple[int, int] = (1, 1), engine: Engine | Literal["local", "ray"] = "local", progress: bool | str = True,
    pipeline_kwargs: Mapping[str, Any] | None = None, training_frames: int | None = None,
) -> Sweep:  # fmt: skip
    """Sample prompts x sizes x seeds x laws, with every attention layer measured.

    Call it again with the same `store` to resume: finished cells are kept. Several processes can share one store.

    Args:
        pipeline: a diffusers pipeline that samples images or videos.
        prompts: texts. A pipeline without prompts needs none.
        sizes: (height, width) in pixels.
        seeds: seeds of the initial noise; one image per prompt, size and seed.
        laws: scaling laws to sample under: names, JSON files or laws.
        steps: number of sampling steps. By default, `models.sampling_defaults(pipeline)`.
        guidance_scale: scale of classifier-free guidance; 1 disables it. Default as for `steps`.
        store: the run directory: a folder, or a URL. By default, a temporary folder that is deleted with the sweep.
        model: name of the model in the manifest, to load it again.
        rows: query rows measured per attention call: "auto", "all" or a number; see `capture`.
        scale_factors: values of g at which the curves H(g) are measured, in addition to 1; see `capture`.
        batch: images per batch at the training size. Larger sizes get proportionally smaller batches.
        shard: (i, n) samples the i-th of n parts of the grid, counted from 1.
        engine: "local" samples in this process, "ray" on a Ray cluster; see `RayEngine`.
        progress: show a progress bar with the time left. A text is the stage that the bar names, such as "validate".
        pipeline_kwargs: further arguments of the pipeline's call, the same for all cells: `{"image": image}`. Images,
            and tensors of images, are resized to the size of the cell. The manifest keeps their hashes.
        training_frames: for videos, frames of the clip that T counts. By default, `num_frames` of the sweep.

    Raises:
        InputError: if an argument is invalid or missing, a law is applied to the pipeline, or the store holds another
            run.
        IncompleteError: after all other cells are sampled, if the memory was too small for some cells.

    >>> import entropy_probe as ep
    >>> swept = sweep(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], steps=1, progress=False)
    >>> bool(swept.frame()["entropy"].mean() > 0)
    True
    """
    given = dict(pipeline_kwargs or {})
    grid = Grid.build(grid_prompts(pipeline, prompts), sizes, seeds, laws)
    sampler = _resolve_engine(engine)
    version = FINGERPRINT_VERSION if store is None else _fingerprint_version(store)
    manifest = _manifest(pipeline, grid, steps, guidance_scale, model, rows, scale_factors, given, version)
    manifest = replace(manifest, training_frames=_training_frames(pipeline, given, training_frames))
    temporary = tempfile.TemporaryDirectory(prefix="entropy-probe-") if store is None else None
    run = RunDirectory(open_location(temporary.name if temporary else store or ""))
    manifest = replace(manifest, model_from_run=path_from_run(manifest.model, run.path))
    run.create(manifest)
    run.write("grid.json", grid.to_json())
    sample_missing(
        run, grid, manifest, pipeline, sampler, batch=batch, shard=shard, progress=progress, pipeline_kwargs=given
    )
    return Sweep(grid, run, manifest, pipeline, sampler, given, temporary)


def extend(
    base: Sweep,
    *,
    laws: Sequence[ScalingLaw | str | Path],
    sizes: Sequence[Size] | None = None,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    batch: int = 8,
    progress: bool | str = True,
) -> Sweep:
    """Sample the prompts of a sweep under other laws, into the same run directory.

    Args:
        base: a sweep with its pipeline.
        laws: scaling laws to sample under: names, JSON files or laws.
        sizes: (height, width) in pixels. By default, the sizes of the sweep.
        prompts: texts. By default, the prompts of the sweep.
        seeds: seeds of the initial noise. By default, the seeds of the sweep.
        batch: see `sweep`.
        progress: see `sweep`.

    Raises:
        InputError: if the sweep was opened without a pipeline, or a law is applied to it.
        IncompleteError: after all other cells are sampled, if the memory was too small for some cells.

    >>> import entropy_probe as ep
    >>> swept = sweep(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], steps=1, progress=False)
    >>> extend(swept, laws=["paper"], progress=False).frame()["law"].unique().tolist()
    ['paper']
    """
    if base.pipeline is None:
        raise InputError("sampling needs the model: open the run with its pipeline, Sweep.open(path, pipeline)")
    check_unscaled(base.pipeline)
    grid = Grid.build(
        base.grid.prompts if prompts is None else prompts,
        base.grid.sizes if sizes is None else sizes,
        base.grid.seeds if seeds is None else seeds,
        laws,
    )
    base.run.upgrade()
    sample_missing(
        base.run, grid, base.manifest, base.pipeline, base.engine,
        batch=batch, progress=progress, pipeline_kwargs=base.pipeline_kwargs,
    )  # fmt: skip
    return replace(base, grid=grid)


def grid_prompts(pipeline: Any, prompts: Sequence[str] | None) -> Sequence[str]:
    """Return the prompts of the grid. A pipeline without prompts has one, which only names its cells.

    Raises:
        InputError: if prompts are missing, or the pipeline takes none.
    """
    name = type(pipeline).__name__
    if takes_prompt(pipeline):
        if prompts is None:
            raise InputError(f"{name} needs prompts: pass prompts=[...]")
        return prompts
    if prompts is not None and tuple(prompts) != (NO_PROMPT,):
        raise InputError(f"{name} takes no prompts: leave prompts out")
    return (NO_PROMPT,)


def _manifest(
    pipeline: Any,
    grid: Grid,
    steps: int | None,
    guidance_scale: float | None,
    model: str | None,
    rows: Rows,
    scale_factors: Sequence[float],
    pipeline_kwargs: Mapping[str, Any],
    version: int,
) -> Manifest:
    """Check the settings against the pipeline and return them as a manifest, with a fingerprint of this version."""
    check_unscaled(pipeline)
    for size in grid.sizes:
        check_size(pipeline, size)
    check_call(pipeline, grid.sizes, pipeline_kwargs)
    sampling = sampling_settings(pipeline, steps, guidance_scale)
    return Manifest(
        model=name_model(model, pipeline),
        fingerprint=fingerprint(pipeline, version),
        pipeline=type(pipeline).__name__,
        dtype=str(find_denoiser(pipeline).dtype).removeprefix("torch."),
        training_size=training_size(pipeline),
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        rows=rows if isinstance(rows, str) else int(rows),
        scale_factors=tuple(map(float, scale_factors)),
        versions=versions(),
        hardware=hardware(),
        pipeline_kwargs=describe(pipeline_kwargs),
        confounders=confounders(pipeline, grid.sizes),
    )


def _training_frames(pipeline: Any, given: Mapping[str, Any], frames: int | None) -> int | None:
    """Return the frames of the clip that T counts: the given number, or the length of the videos of this sweep."""
    length = given.get("num_frames") or default_frames(pipeline)
    if frames is not None and length is None:
        raise InputError(f"{type(pipeline).__name__} samples no videos, got training_frames={frames!r}: leave it out")
    for number in (length, frames):
        check_frames(number)
    return frames or length


def _fingerprint_version(store: str | Path) -> int:
    """Return the version of the fingerprint in a run that is resumed; for a new run, the current one."""
    with suppress(InputError, OSError):  # `RunDirectory.create` reports both
        return fingerprint_version(RunDirectory(open_location(store)).manifest().fingerprint)
    return FINGERPRINT_VERSION


def _read_grid(run: RunDirectory) -> Grid:
    try:
        return Grid.from_json(run.read_text("grid.json"))
    except InputError as error:
        raise InputError(f"{run.path / 'grid.json'}: {error}. Rerun the same sweep to write it again") from error


def _resolve_engine(engine: Engine | str) -> Engine:
    known: dict[str, Engine] = {"local": LocalEngine(), "ray": RayEngine()}
    if not isinstance(engine, str):
        return engine
    if engine not in known:
        raise InputError(f"engine must be {' or '.join(known)}, got {engine!r}")
    return known[engine]
