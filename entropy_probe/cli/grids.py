"""Turn command-line options into a grid of cells, and estimate what its sampling costs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from entropy_probe.cli.loading import EngineChoice, load_pipeline
from entropy_probe.cli.option_groups import CallOptions, GridOptions
from entropy_probe.cli.options import DEFAULT_OUT
from entropy_probe.cli.output import make_table, print_json, print_line, print_table
from entropy_probe.cli.parsing import check_positive, parse_prompts, parse_rows, parse_seeds, parse_sizes
from entropy_probe.errors import InputError

if TYPE_CHECKING:
    from entropy_probe.models import ModelSource, Size


@dataclass(frozen=True)
class Prepared:
    """A pipeline, and what to sample with it.

    Attributes:
        pipeline: the pipeline.
        arguments: keyword arguments of `entropy_probe.sweep`.
        notices: lines for the user, to print when the sampling begins.
    """

    pipeline: Any
    arguments: dict[str, Any]
    notices: tuple[str, ...] = ()


def prepare_grid(
    source: ModelSource, options: GridOptions, call: CallOptions, engine: EngineChoice, *, needs_law: bool = False
) -> Prepared:
    """Load the pipeline, and check the grid.

    Args:
        source: the model.
        options: the grid. Steps and guidance scale default to `models.sampling_defaults`.
        call: further arguments of the pipeline's call.
        engine: device and precision of the pipeline.
        needs_law: the caller derives a law, which needs a second size if the pipeline samples several.

    Raises:
        InputError: if an option is invalid for this pipeline, or there are too few sizes.
    """
    from entropy_probe.models import check_call, check_guidance, check_size, sampling_settings, training_size

    given = call.read()
    prompts = chosen_prompts(options.prompts, options.prompt, options.plan.prompts)
    seeds = options.plan.seeds if options.seeds is None else parse_seeds(options.seeds)
    sizes = parse_sizes(options.sizes)
    if options.steps is not None:
        check_positive("steps", options.steps)
    if options.guidance_scale is not None:
        check_guidance(options.guidance_scale)
    rows = parse_rows(options.rows)
    pipeline = load_pipeline(source, engine.device, engine.dtype)
    sampling = sampling_settings(pipeline, options.steps, options.guidance_scale)
    for size in sizes or []:
        check_size(pipeline, size)
    sizes, notices = _sizes(pipeline, sizes, options.quick, given)
    trained = training_size(pipeline)
    if needs_law and len(sizes) < 2 and not samples_one_size(pipeline, given):
        raise InputError(
            f"sizes must include a size other than the training size, {trained[0]}x{trained[1]}, to derive a law: "
            "add one"
        )
    check_call(pipeline, sizes, given)
    prompts, notice = prompts_for(pipeline, prompts, source.model, options.plan.prompts)
    arguments = {
        "prompts": prompts, "sizes": sizes, "seeds": seeds, **asdict(sampling), "rows": rows, "pipeline_kwargs": given,
        "training_frames": options.training_frames,
    }  # fmt: skip
    return Prepared(pipeline, arguments, (*notices, *notice))


def _sizes(pipeline: Any, sizes: list[Size] | None, quick: bool, given: dict[str, Any]) -> tuple[list[Size], list[str]]:
    """Return the sizes of the grid, and a notice if the training size was added."""
    from entropy_probe.models import size_multiple, training_size

    trained = training_size(pipeline)
    if sizes is None:
        fixed = samples_one_size(pipeline, given)
        return [trained] if fixed else default_sizes(trained, quick, size_multiple(pipeline)), []
    if trained in sizes or samples_one_size(pipeline, given):
        return sizes, []
    return [trained, *sizes], [f"adding the training size, {trained[0]}x{trained[1]}: drift is measured against it"]


def samples_one_size(pipeline: Any, given: dict[str, Any]) -> bool:
    """Return whether a pipeline samples only its training size, as DDPM and DiT do."""
    from entropy_probe.models import takes_size

    return not takes_size(pipeline, given)


def chosen_prompts(prompts: str | None, inline: list[str] | None, count: int) -> list[str] | None:
    """Return the prompts that the user gave in a file or in flags, or None.

    Raises:
        InputError: if both are given, or the file cannot be read.

    >>> chosen_prompts(None, ["a red apple"], 8)
    ['a red apple']
    """
    if prompts is not None and inline:
        raise InputError("prompts are given twice: use --prompt or --prompts, not both")
    return list(dict.fromkeys(inline)) if inline else None if prompts is None else parse_prompts(prompts, count)


def prompts_for(pipeline: Any, prompts: list[str] | None, model: str, count: int) -> tuple[list[str] | None, list[str]]:
    """Return the prompts of a pipeline, and a notice if they are bundled ones for a model of the user.

    Args:
        pipeline: the pipeline.
        prompts: those of the user, or None.
        model: name of the model.
        count: number of bundled prompts to use.

    Raises:
        InputError: if a pipeline without prompts was given some.
    """
    from entropy_probe.models import REFERENCES, takes_prompt

    if not takes_prompt(pipeline):
        if prompts is not None:
            raise InputError(f"{type(pipeline).__name__} takes no prompts: leave --prompt and --prompts out")
        return None, []
    if prompts is not None:
        return prompts, []
    bundled = parse_prompts(None, count)
    notice = f"no prompts given: using {count} bundled prompts, such as {bundled[0]!r}; give --prompt or --prompts"
    return bundled, [] if model in REFERENCES else [notice]


def folder_of(out: str, quick: bool) -> str:
    """Return the run directory. By default, a small grid has another one, and replaces no results of the full grid.

    >>> folder_of("entropy-run", quick=True), folder_of("mine", quick=True)
    ('entropy-run-quick', 'mine')
    """
    return f"{DEFAULT_OUT}-quick" if quick and str(out) == DEFAULT_OUT else out


def default_sizes(trained: Size, quick: bool = False, multiple: int = 8) -> list[Size]:
    """Return sizes from half to three times the training size, one of them wide. `quick` returns fewer, smaller ones.

    Args:
        trained: the training size.
        quick: whether to return fewer sizes.
        multiple: the sides are multiples of this number of pixels.

    >>> default_sizes((64, 64), quick=True)
    [(32, 32), (64, 64), (64, 96), (128, 128)]
    """
    height, width = trained
    if quick:
        factors = [(0.5, 0.5), (1, 1), (1, 1.5), (2, 2)]
    else:  # 0.75 because interpolation between half the size and the training size is inaccurate
        factors = [(0.5, 0.5), (0.75, 0.75), (1, 1), (1, 2), (2, 2), (3, 3)]
    sizes = [
        (max(1, int(height * a) // multiple) * multiple, max(1, int(width * b) // multiple) * multiple)
        for a, b in factors
        if (a, b) != (1, 1)
    ]
    return sorted({*sizes, trained}, key=lambda size: (size[0] * size[1], size))


def print_forecast(pipeline: Any, grid: dict[str, Any], *, rounds: int, laws: int, as_json: bool) -> None:
    """Print the estimated time and disk use of a grid.

    Args:
        pipeline: samples cells of the small sizes; the cost of large ones is extrapolated.
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
                "error, %": None if math.isnan(estimate.error) else round(100 * estimate.error),
                "kB per cell": estimate.bytes / 1000,
                "total cells, at most": cells,
            }
        )
    if as_json:
        print_json({"sizes": rows, "seconds": seconds, "bytes": size_on_disk})
        return
    console = Console(highlight=False)
    print_table(console, make_table(rows))
    print_line(
        console,
        f"at most {seconds / 60:.1f} minutes in one process and {size_on_disk / 1e6:.1f} MB on disk; nothing was saved",
    )
