"""Turn command-line options into a grid of cells, and estimate what its sampling costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from entropy_probe.cli.loading import EngineChoice, load_pipeline
from entropy_probe.cli.options import DEFAULT_OUT
from entropy_probe.cli.output import Messages, make_table, print_json
from entropy_probe.cli.parsing import check_positive, parse_prompts, parse_rows, parse_seeds, parse_sizes
from entropy_probe.cli.pipeline_kwargs import read_pipeline_kwargs
from entropy_probe.errors import InputError

if TYPE_CHECKING:
    from entropy_probe.models import Size


@dataclass(frozen=True)
class Plan:
    """Defaults of the grid.

    Attributes:
        prompts: number of bundled prompts.
        seeds: seeds.
        rounds: maximum number of rounds that refine the measured law.
    """

    prompts: int
    seeds: tuple[int, ...]
    rounds: int


FULL = Plan(prompts=8, seeds=(0, 1), rounds=3)
QUICK = Plan(prompts=4, seeds=(0,), rounds=1)


@dataclass(frozen=True)
class GridOptions:
    """The options that describe a grid, as given on the command line; None means the default."""

    model: str
    sizes: str | None
    prompts: str | None
    seeds: str | None
    steps: int | None
    guidance_scale: float | None
    rows: str
    quick: bool
    pipeline_kwargs: Path | None = None

    @property
    def plan(self) -> Plan:
        """The defaults for this grid."""
        return QUICK if self.quick else FULL


def prepare_grid(
    options: GridOptions, engine: EngineChoice, messages: Messages, *, min_sizes: int = 1
) -> tuple[Any, dict[str, Any]]:
    """Load the pipeline, and return it with the keyword arguments of `entropy_probe.sweep`.

    Args:
        options: the grid. Steps and guidance scale default to `models.sampling_defaults`.
        engine: device and precision of the pipeline.
        messages: where to report an added training size.
        min_sizes: number of sizes that the caller needs, the training size included.

    Raises:
        InputError: if an option is invalid for this pipeline, or there are too few sizes.
    """
    from entropy_probe.models import check_guidance, check_size, sampling_settings, takes_prompt, training_size

    given = read_pipeline_kwargs(options.pipeline_kwargs)
    prompts: list[str] | None = parse_prompts(options.prompts, options.plan.prompts)
    seeds = options.plan.seeds if options.seeds is None else parse_seeds(options.seeds)
    sizes = parse_sizes(options.sizes)
    if options.steps is not None:
        check_positive("steps", options.steps)
    if options.guidance_scale is not None:
        check_guidance(options.guidance_scale)
    rows = parse_rows(options.rows)
    pipeline = load_pipeline(options.model, engine.device, engine.dtype)
    if options.prompts is None and not takes_prompt(pipeline):
        prompts = None
    sampling = sampling_settings(pipeline, options.steps, options.guidance_scale)
    for size in sizes or []:
        check_size(pipeline, size)
    trained = training_size(pipeline)
    if sizes is None:
        sizes = default_sizes(trained, options.quick)
    elif trained not in sizes:
        messages.print(f"adding the training size, {trained[0]}x{trained[1]}: drift is measured against it")
        sizes.insert(0, trained)
    if len(sizes) < min_sizes:
        raise InputError(
            f"sizes must include a size other than the training size, {trained[0]}x{trained[1]}, to derive a law: "
            "add one"
        )
    return pipeline, {
        "prompts": prompts,
        "sizes": sizes,
        "seeds": seeds,
        **asdict(sampling),
        "rows": rows,
        "pipeline_kwargs": given,
    }


def folder_of(out: str, quick: bool) -> str:
    """Return the run directory. By default, a small grid has another one, and replaces no results of the full grid.

    >>> folder_of("entropy-run", quick=True), folder_of("mine", quick=True)
    ('entropy-run-quick', 'mine')
    """
    return f"{DEFAULT_OUT}-quick" if quick and str(out) == DEFAULT_OUT else out


def default_sizes(trained: Size, quick: bool = False) -> list[Size]:
    """Return sizes from half to three times the training size, one of them wide. `quick` returns fewer, smaller ones.

    >>> default_sizes((64, 64), quick=True)
    [(32, 32), (64, 64), (64, 96), (128, 128)]
    """
    height, width = trained
    if quick:
        factors = [(0.5, 0.5), (1, 1), (1, 1.5), (2, 2)]
    else:  # 0.75 because interpolation between half the size and the training size is inaccurate
        factors = [(0.5, 0.5), (0.75, 0.75), (1, 1), (1, 2), (2, 2), (3, 3)]
    return [(int(height * a) // 8 * 8, int(width * b) // 8 * 8) for a, b in factors]


def print_forecast(pipeline: Any, grid: dict[str, Any], *, rounds: int, laws: int, as_json: bool) -> None:
    """Print the estimated time and disk use of a grid.

    Args:
        pipeline: samples one cell of each size.
        grid: keyword arguments of `entropy_probe.sweep`.
        rounds: maximum number of rounds that refine the measured law.
        laws: number of laws that are sampled for validation.
        as_json: print JSON on standard output instead of a table.
    """
    from entropy_probe.models import format_size, training_size
    from entropy_probe.runs import forecast

    seeds, trained = len(grid["seeds"]), training_size(pipeline)
    rows, seconds, size_on_disk = [], 0.0, 0
    for estimate in forecast(pipeline, **grid):
        refined = 0 if estimate.size == trained else rounds * ((seeds + 1) // 2)
        cells = estimate.cells + len(grid["prompts"] or [""]) * (refined + laws * seeds)
        seconds, size_on_disk = seconds + cells * estimate.seconds, size_on_disk + cells * estimate.bytes
        rows.append(
            {
                "size": format_size(estimate.size),
                "cells": estimate.cells,
                "batches": estimate.batches,
                "seconds per cell": estimate.seconds,
                "kB per cell": estimate.bytes / 1000,
                "total cells, at most": cells,
            }
        )
    if as_json:
        print_json({"sizes": rows, "seconds": seconds, "bytes": size_on_disk})
        return
    console = Console(highlight=False)
    console.print(make_table(rows))
    console.print(
        f"at most {seconds / 60:.1f} minutes in one process and {size_on_disk / 1e6:.1f} MB on disk; nothing was saved"
    )
