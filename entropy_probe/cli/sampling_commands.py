"""Define the commands that sample a model: run, sweep, sample."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from entropy_probe.cli.announcing import sample_prepared
from entropy_probe.cli.finished import finished_messages, mark_finished
from entropy_probe.cli.grids import folder_of, prepare_grid, print_forecast
from entropy_probe.cli.grouping import grouped
from entropy_probe.cli.groups import examples, new_app
from entropy_probe.cli.loading import choose_engine, choose_scorer, load_pipeline
from entropy_probe.cli.option_groups import CallOptions, GridOptions, LoadOptions
from entropy_probe.cli.options import (
    DEFAULT_LAWS,
    DEFAULT_OUT,
    EVALUATION_PANEL,
    OUTPUT_PANEL,
    AddressOption,
    ConfigOption,
    DryRunOption,
    EngineOption,
    GuidanceOption,
    ImagesOption,
    JsonOption,
    LawsOption,
    MetricsOption,
    ModelOption,
    OutOption,
    QuietOption,
    RoundsOption,
    SeedsOption,
    ShardOption,
    SizesOption,
    StepsOption,
    TokensOption,
    TrainingFramesOption,
)
from entropy_probe.cli.output import Messages, closing_rows, command_line, make_table, print_json, print_verdict
from entropy_probe.cli.parsing import check_laws, parse_names, parse_seeds, parse_shard, parse_sizes
from entropy_probe.cli.settings import save_config
from entropy_probe.cli.stages import derive_and_save, fit_and_save, validate_and_save
from entropy_probe.errors import InputError
from entropy_probe.escape import for_file_name
from entropy_probe.extras import check_installed
from entropy_probe.paths import is_file

if TYPE_CHECKING:
    from entropy_probe.evaluation import Scorer
    from entropy_probe.laws import ScalingLaw
    from entropy_probe.models import Size
    from entropy_probe.reports import Report
    from entropy_probe.runs import Sweep

PANEL = "Sample a model"

app = new_app()


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "entropy-probe run --quick",
        "entropy-probe run --model my-folder --sizes 512,768,1024x512 --steps 20",
        "entropy-probe run --config my-run/config.yaml --seeds 2,3 --out other-seeds",
        "entropy-probe run --json --out my-run | jq .verdict",
    ),
)
@grouped
def run(
    context: typer.Context,
    *,
    model: ModelOption = "reference",
    load: LoadOptions,
    grid: GridOptions,
    call: CallOptions,
    out: OutOption = DEFAULT_OUT,
    laws: LawsOption = DEFAULT_LAWS,
    metrics: MetricsOption = "auto",
    images: ImagesOption = None,
    rounds: RoundsOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Run all stages: sample, fit, derive the scale factors, validate them, and write the report.

    Rerun the same command to resume. A finished run is not repeated.
    """
    out, messages = folder_of(out, grid.quick), Messages(quiet or as_json)
    if not dry_run and (sentences := finished_messages(out, model, context.params)) is not None:
        messages.print("The same command has finished this run before, and nothing has changed since.")
        print_verdict(sentences, Path(out) / "report.html", as_json, messages)
        return
    if not dry_run:
        check_installed("report")  # the report is written last
    check_laws(laws)
    source = load.source(model)
    scorer = choose_scorer(metrics, images, model)
    choice = choose_engine(
        engine, address, model=source, device=load.device, dtype=load.dtype, dry_run=dry_run, local_device="auto"
    )
    max_rounds = grid.plan.rounds if rounds is None else rounds
    prepared = prepare_grid(source, grid, call, choice, needs_law=True)
    if dry_run:
        names = {*parse_names(laws)}
        refinements = max_rounds if "measured" in names else 0
        print_forecast(
            prepared.pipeline, prepared.arguments, rounds=refinements, laws=len(names - {"original"}), as_json=as_json
        )
        return
    sampled = sample_prepared(prepared, choice.engine, messages, store=out, model=model)
    save_config(context, sampled, load, laws=laws, metrics=metrics, images=images, rounds=max_rounds)
    if len(sampled.grid.sizes) > 1:
        page = _analyse(sampled, laws, max_rounds, scorer, messages)
    else:
        page = _report_one_size(sampled, messages)
    path = page.save(sampled.run.path / "report.html", data=True)
    mark_finished(out, model, context.params, page.verdict())
    print_verdict(page.verdict(), path, as_json, messages)


def _report_one_size(sampled: Sweep, messages: Messages) -> Report:
    """Return the report of a pipeline that samples only its training size. A law needs a second size."""
    from entropy_probe.reports import report

    messages.print(f"{sampled.manifest.pipeline} samples one size: no law is fitted, derived or validated")
    return report(sampled, command=command_line())


def _analyse(sampled: Sweep, laws: str, max_rounds: int, scorer: Scorer | None, messages: Messages) -> Report:
    """Run the stages after sampling, and return the report."""
    from entropy_probe.reports import report
    from entropy_probe.runs import entropy_maps

    fitted = fit_and_save(sampled)
    messages.print(str(fitted))
    derivation = None
    if "measured" in parse_names(laws):
        derivation, _ = derive_and_save(sampled, "measured", max_rounds, None, messages)
    outcome, _ = validate_and_save(sampled, laws, scorer, messages)
    law = derivation.law if derivation else None
    maps = entropy_maps(sampled, law)
    page = report(sampled, fitted, law, outcome, derivation=derivation, entropy_maps=maps, command=command_line())
    if rows := closing_rows(outcome):
        messages.print(make_table(rows))
    return page


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "entropy-probe sweep --sizes 32,64,128 --prompts 16 --out my-run",
        "entropy-probe sweep --dry-run --sizes 32,64,128",
        "entropy-probe sweep --shard 1/4 --out /shared/my-run",
    ),
)
@grouped
def sweep(
    context: typer.Context,
    *,
    model: ModelOption = "reference",
    load: LoadOptions,
    grid: GridOptions,
    call: CallOptions,
    out: OutOption = DEFAULT_OUT,
    shard: ShardOption = "1/1",
    engine: EngineOption = "local",
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Sample the unchanged model over prompts, sizes and seeds, and measure every attention layer.

    Rerun the same command to resume.
    """
    out, messages, source = folder_of(out, grid.quick), Messages(quiet or as_json), load.source(model)
    part = parse_shard(shard)
    choice = choose_engine(
        engine, address, model=source, device=load.device, dtype=load.dtype, dry_run=dry_run, local_device="cpu"
    )
    prepared = prepare_grid(source, grid, call, choice)
    if dry_run:
        print_forecast(prepared.pipeline, {**prepared.arguments, "shard": part}, rounds=0, laws=0, as_json=as_json)
        return
    sampled = sample_prepared(prepared, choice.engine, messages, store=out, model=model, shard=part)
    save_config(context, sampled, load)
    if as_json:
        print_json({"run": str(out), "cells": len(sampled.grid)})
    messages.print(f"{len(sampled.grid)} cells in {out}")


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        'entropy-probe sample "noto red apple" --sizes 32,64,128x96',
        'entropy-probe sample "noto red apple" "flat pizza" --sizes 128 --law paper',
        'entropy-probe sample "noto red apple" --sizes 128 --law entropy-run/law.json',
    ),
)
@grouped
def sample(
    *,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="One or more prompts, if the pipeline takes any.", show_default=False),
    ] = None,
    model: ModelOption = "reference",
    load: LoadOptions,
    call: CallOptions,
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT_PANEL, help="Folder for the images.")] = Path("samples"),
    sizes: SizesOption = None,
    seeds: SeedsOption = "0",
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    law: Annotated[
        str, typer.Option(rich_help_panel=EVALUATION_PANEL, help="Scaling law: a name or a JSON file.")
    ] = "original",
    tokens: TokensOption = "image",
    training_frames: TrainingFramesOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Sample images or videos under a scaling law. A video is saved as an animated PNG."""
    from entropy_probe.laws import resolve, scaled
    from entropy_probe.laws.scaling import check_tokens
    from entropy_probe.models import check_call, check_guidance, check_size, sampling_settings, training_size
    from entropy_probe.runs import as_texts

    as_texts(prompt or ())
    if re.match(r"[a-z0-9]{2,}:/", str(out)):  # a URL such as s3://bucket, but not the drive C:
        raise InputError(f"sample writes to a local folder, got {str(out)!r}: use a local folder for --out")
    if guidance_scale is not None:
        check_guidance(guidance_scale)
    if len(parse_names(law)) > 1 and not is_file(law):
        raise InputError(f"sample applies one law at a time, got {law!r:.200}: name one law, and repeat for the others")
    scaling_law = resolve(law)
    check_tokens(tokens)
    seed_list, given = parse_seeds(seeds or "0"), call.read()
    pipeline = load_pipeline(load.source(model), load.device, load.dtype)
    prompts = _prompts_of(pipeline, prompt)
    size_list = parse_sizes(sizes) or [training_size(pipeline)]
    for size in size_list:
        check_size(pipeline, size)
    settings = asdict(sampling_settings(pipeline, steps, guidance_scale))
    messages = Messages(quiet or as_json)
    settings["pipeline_kwargs"] = given
    check_call(pipeline, size_list, given)
    video = _video_tokens(pipeline, scaling_law, training_frames, given)
    with scaled(pipeline, scaling_law, tokens=cast(Any, tokens), **video):
        saved = _sample_and_save(pipeline, scaling_law.name, prompts, size_list, seed_list, settings, out, messages)
    if as_json:
        print_json({"law": scaling_law.name, "images": saved})


def _video_tokens(
    pipeline: Any, law: ScalingLaw, training_frames: int | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `scaled` for T of a video: as given, as the law was derived, or as `run` has it."""
    from entropy_probe.attention import default_frames
    from entropy_probe.laws.origin import origin_of

    if training_frames is not None or default_frames(pipeline) is None:
        return {"training_frames": training_frames}
    origin = origin_of(law)
    if origin is not None and origin.training_tokens:
        return {"training_tokens": dict(origin.training_tokens)}
    return {"training_frames": given.get("num_frames")}


def _prompts_of(pipeline: Any, prompts: list[str] | None) -> list[str]:
    """Return the prompts to sample. A pipeline without prompts has one sample per size and seed.

    Raises:
        InputError: if prompts are missing, or the pipeline takes none.
    """
    from entropy_probe.models import takes_prompt
    from entropy_probe.runs import NO_PROMPT

    if not takes_prompt(pipeline):
        if prompts:
            raise InputError(f"{type(pipeline).__name__} takes no prompts: leave them out")
        return [NO_PROMPT]
    if not prompts:
        raise InputError('no prompt: name at least one, such as entropy-probe sample "noto red apple" --sizes 32,64')
    return prompts


def _sample_and_save(
    pipeline: Any,
    law: str,
    prompts: list[str],
    sizes: list[Size],
    seeds: tuple[int, ...],
    settings: dict[str, Any],
    out: Path,
    messages: Messages,
) -> list[dict[str, Any]]:
    """Sample one image or video per prompt, size and seed, save it as PNG, and return a description of each."""
    from entropy_probe.models import format_size, sample_clips, to_png

    saved = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for size in sizes:
            for seed in seeds:
                sampled = sample_clips(pipeline, prompts, size, [seed] * len(prompts), **settings)
                for number, (prompt, clip) in enumerate(zip(prompts, sampled, strict=True)):
                    path = (
                        out / f"{number:02d}_{for_file_name(prompt) or 'image'}_{format_size(size)}_s{seed}_{law}.png"
                    )
                    path.write_bytes(to_png(clip))
                    messages.print(str(path))
                    saved.append({"file": str(path), "prompt": prompt, "size": format_size(size), "seed": seed})
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    return saved
