"""The command line: `entropy-probe run`, its stages over a run directory, `sample`, `info` and `baseline`."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from entropy_probe.errors import CaptureError, IncompleteError, InputError
from entropy_probe.escape import for_terminal, one_line

if TYPE_CHECKING:
    import pandas as pd

    from entropy_probe.baselines import Comparison
    from entropy_probe.evaluation import Judge
    from entropy_probe.laws import ScalingLaw
    from entropy_probe.models import ImageFolder, Size
    from entropy_probe.reference.drawings import Drawings
    from entropy_probe.runs import Engine, Sweep


def _examples(*lines: str) -> str:
    """The end of a help text: commands to copy."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"[cyan]  {line}[/cyan]" for line in lines)])


def _words(*words: str) -> Callable[[str], list[str]]:
    """What the shell completes an option with."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


class _Group(TyperGroup):
    """Commands, named where none is near the one that was asked for; where one is, the library names it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        asked, known = args[0], list(self.commands)
        strange = asked not in known and not asked.startswith("-") and not difflib.get_close_matches(asked, known)
        if strange and not ctx.resilient_parsing:
            raise InputError(f"there is no command {asked[:100]!r}: there are {', '.join(known)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure a diffusion model's attention entropy, derive the scaling factor each size needs, see if it helps.",
    epilog=_examples(
        "entropy-probe run",
        "entropy-probe run --model my-folder --sizes 512,768,1024 --out my-run",
        "entropy-probe run --config my-run/config.yaml --out again",
        "entropy-probe --install-completion",
    ),
)


def _take(context: typer.Context, path: Path | None) -> Path | None:
    """Put what a config file says in place of the defaults, for the options that this command has."""
    if path is not None and not context.resilient_parsing:
        from entropy_probe.cli.config import read_config

        mine = _settings(context.command)
        options = {one.name: one for one in context.command.params}

        def fault(name: str, text: str) -> str:
            try:
                if name in mine:
                    options[mine[name]].process_value(context, text)
            except typer.BadParameter as error:
                wanted = error.message.removeprefix("Input should be ").partition(",")[0]
                return f"must be {wanted}"
            return ""

        said = read_config(path, _known(), fault)
        context.default_map = {mine[name]: text for name, text in said.items() if name in mine}
    return path


CONFIG = Annotated[
    Path | None,
    typer.Option(
        callback=_take,
        is_eager=True,
        help="YAML file of settings, named as the flags; a flag given here counts for more. A run keeps its own as "
        "config.yaml.",
    ),
]
MODEL = Annotated[
    str,
    typer.Option(
        help="Hub id, folder of a diffusers pipeline, or a bundled one: reference, reference-dit.",
        autocompletion=_words("reference", "reference-dit"),
    ),
]
STAGE_MODEL = Annotated[str | None, typer.Option("--model", help="The model, if it is not where the run found it.")]
OUT = Annotated[str, typer.Option(help="The run directory: a folder, or a URL such as s3://bucket/run.")]
SIZES = Annotated[
    str | None, typer.Option(help="Pixels, such as 32,64,96x128: one number is square, else HEIGHTxWIDTH.")
]
PROMPTS = Annotated[
    str | None, typer.Option(help="A text file with one prompt a line, or how many of the bundled ones.")
]
SEEDS = Annotated[str | None, typer.Option(help="Seeds, such as 0,1: one image each for every prompt and size.")]
STEPS = Annotated[int | None, typer.Option(help="Sampling steps.")]
GUIDANCE = Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 turns it off.")]
LAWS = Annotated[str, typer.Option(help="Scaling laws by name, or the JSON file of one: original,paper,law.json.")]
ROUNDS = Annotated[
    int | None, typer.Option(min=0, help="Most samplings of the refinement of the measured law; 3, or 1 if --quick.")
]
ROWS = Annotated[str, typer.Option(help="Attention rows per call: all, a number, or auto, as many as 0.01 nats need.")]
SHARD = Annotated[str, typer.Option(help="i/n samples the i-th of n parts of the grid, as an array job does.")]
ENGINE = Annotated[str, typer.Option(help="Where cells are sampled: local, in this process, or ray, on a Ray cluster.")]
ADDRESS = Annotated[
    str | None, typer.Option(help="Of the Ray cluster, such as auto; without it one is found, or started here.")
]
DRY_RUN = Annotated[
    bool,
    typer.Option("--dry-run", help="Only tell the grid, and the time and space it takes, from one cell of each size."),
]
DEVICE = Annotated[
    str,
    typer.Option(help="auto takes cuda, else mps, else cpu.", autocompletion=_words("auto", "cpu", "cuda", "mps")),
]
DTYPE = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16; auto is float32 on the CPU, else float16.",
        autocompletion=_words("auto", "float32", "bfloat16", "float16"),
    ),
]
QUICK = Annotated[bool, typer.Option("--quick", help="A small grid, for a first look.")]
METRICS = Annotated[
    str,
    typer.Option(
        autocompletion=_words("auto", "critic", "inception", "efficientnet-lite0", "none"),
        help="What judges the images, one or several by commas: critic (knows the bundled models' drawings), "
        "inception, efficientnet-lite0, the hub id or folder of a CLIP or another image model of transformers; none, "
        "or auto: the critic for a bundled model.",
    ),
]
IMAGES = Annotated[
    Path | None,
    typer.Option(help="Folder of real images; the caption of x.png is the text of x.txt, or else its name."),
]
JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
QUIET = Annotated[bool, typer.Option("--quiet", help="No progress bars and no summary.")]

DEFAULT_OUT = "entropy-run"
GUIDANCE_SCALE = 4.0
CALIBRATED_ON = 6
"""Every how-manieth of the bundled drawings serves for calibration."""

FAILED = 1
INTERRUPTED = 130
INTERRUPTION = "interrupted; what is sampled is kept, the same command goes on from there"


@dataclass(frozen=True)
class _Plan:
    prompts: int
    seeds: tuple[int, ...]
    steps: int
    rounds: int


_FULL = _Plan(prompts=8, seeds=(0, 1), steps=8, rounds=3)
_QUICK = _Plan(prompts=4, seeds=(0,), steps=8, rounds=1)


@app.command(
    epilog=_examples(
        "entropy-probe run --quick",
        "entropy-probe run --model my-folder --sizes 512,768,1024x512 --steps 20",
        "entropy-probe run --config my-run/config.yaml --seeds 2,3 --out other-seeds",
        "entropy-probe run --json --out my-run | jq .verdict",
    ),
)
def run(
    model: MODEL = "reference",
    out: OUT = DEFAULT_OUT,
    sizes: SIZES = None,
    prompts: PROMPTS = None,
    seeds: SEEDS = None,
    steps: STEPS = None,
    guidance_scale: GUIDANCE = GUIDANCE_SCALE,
    laws: LAWS = "original,paper,measured",
    metrics: METRICS = "auto",
    images: IMAGES = None,
    rounds: ROUNDS = None,
    rows: ROWS = "auto",
    engine: ENGINE = "local",
    address: ADDRESS = None,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
    quick: QUICK = False,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Do everything: sample, fit, derive the scaling factor, validate it, and write the report."""
    from entropy_probe.estimation import derive_measured
    from entropy_probe.estimation import fit as fit_laws
    from entropy_probe.evaluation import validate_sweep
    from entropy_probe.reports import report as make_report
    from entropy_probe.runs import entropy_maps
    from entropy_probe.runs import sweep as sample_grid

    plan = _QUICK if quick else _FULL
    _check_laws(laws)
    say = _Say(quiet or as_json)
    judge = _judge(metrics, images, model)
    where = _engine(engine, address, model, device, dtype, dry_run, here="auto")
    most = plan.rounds if rounds is None else rounds
    pipeline, grid = _grid(
        model, sizes, prompts, seeds, steps, guidance_scale, rows, where.device, where.dtype, plan, quick, say,
        least_sizes=2,
    )  # fmt: skip
    if dry_run:
        refined = most if "measured" in _names(laws) else 0
        _tell_forecast(pipeline, grid, refined, len({*_names(laws)} - {"original"}), as_json)
        return
    made = sample_grid(pipeline, store=out, model=model, engine=where.engine, progress=say.progress, **grid)
    _keep_config(made, device, laws=laws, metrics=metrics, images=images, rounds=most)
    fitted = fit_laws(made)
    made.run.write("fit.json", fitted.to_json())
    say(str(fitted))
    derivation = None
    if "measured" in _names(laws):
        derivation = derive_measured(
            made,
            rounds=most,
            progress=say.progress,
            on_round=lambda r: say(f"round {r.number}: {r.drift:.3f} +- {r.drift_se:.3f} nats of drift remain"),
        )
        _keep_law(made, derivation)
    outcome = validate_sweep(made, _resolve_laws(made, laws), judge=judge, progress=say.progress)
    made.run.write("outcome.json", outcome.to_json())
    law = derivation.law if derivation else None
    maps = entropy_maps(made, law)
    page = make_report(made, fitted, law, outcome, derivation=derivation, entropy_maps=maps, command=_command())
    path = page.save(made.run.path / "report.html")
    _finish(page, path, as_json, say)


@app.command(
    epilog=_examples(
        "entropy-probe sweep --sizes 32,64,128 --prompts 16 --out my-run",
        "entropy-probe sweep --dry-run --sizes 32,64,128",
        "entropy-probe sweep --shard 1/4 --out /shared/my-run",
    ),
)
def sweep(
    model: MODEL = "reference",
    out: OUT = DEFAULT_OUT,
    sizes: SIZES = None,
    prompts: PROMPTS = None,
    seeds: SEEDS = None,
    steps: STEPS = None,
    guidance_scale: GUIDANCE = GUIDANCE_SCALE,
    rows: ROWS = "auto",
    shard: SHARD = "1/1",
    engine: ENGINE = "local",
    address: ADDRESS = None,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
    quick: QUICK = False,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Sample the original model over prompts, sizes and seeds, with every attention layer measured."""
    from entropy_probe.runs import sweep as sample_grid

    plan = _QUICK if quick else _FULL
    say = _Say(quiet or as_json)
    part = _parse_shard(shard)
    where = _engine(engine, address, model, device, dtype, dry_run, here="cpu")
    pipeline, grid = _grid(
        model, sizes, prompts, seeds, steps, guidance_scale, rows, where.device, where.dtype, plan, quick, say
    )
    if dry_run:
        _tell_forecast(pipeline, {**grid, "shard": part}, 0, 0, as_json)
        return
    made = sample_grid(pipeline, store=out, model=model, shard=part, engine=where.engine, progress=say.progress, **grid)
    _keep_config(made, device)
    if as_json:
        _print_json({"run": str(out), "cells": len(made.grid)})
    say(f"{len(made.grid)} cells in {out}")


@app.command(
    epilog=_examples(
        "entropy-probe fit --out my-run",
        "entropy-probe fit --out my-run --json",
    ),
)
def fit(out: OUT = DEFAULT_OUT, as_json: JSON = False, quiet: QUIET = False, config: CONFIG = None) -> None:
    """Fit H = a + b ln N to a sweep, per layer and pooled."""
    from entropy_probe.estimation import fit as fit_laws
    from entropy_probe.runs import Sweep

    made = Sweep.open(out)
    fitted = fit_laws(made)
    made.run.write("fit.json", fitted.to_json())
    if as_json:
        sys.stdout.write(fitted.to_json())
    say = _Say(quiet or as_json)
    say(_table(_layer_rows(fitted.table()[["layer", "slope", "slope_se", "slope_low", "slope_high", "r_squared"]])))
    say(str(fitted))


@app.command(
    epilog=_examples(
        "entropy-probe derive --out my-run",
        "entropy-probe derive --out my-run --method gaussian",
        "entropy-probe derive --out my-run --method calibrated",
        "entropy-probe derive --out my-run --method calibrated --images my-images",
    ),
)
def derive(
    out: OUT = DEFAULT_OUT,
    model: STAGE_MODEL = None,
    method: Annotated[
        str,
        typer.Option(
            help="measured keeps the entropy; gaussian does by the logit variance, and samples nothing; calibrated "
            "lowers the denoising loss on real images.",
            autocompletion=_words("measured", "gaussian", "calibrated"),
        ),
    ] = "measured",
    rounds: ROUNDS = None,
    images: IMAGES = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Derive a scaling law from a sweep: measured, which samples again (law.json), gaussian or calibrated (.json)."""
    from entropy_probe.estimation import derive_measured
    from entropy_probe.laws import DERIVED

    if method not in DERIVED:
        raise InputError(f"method must be {', '.join(DERIVED[:-1])} or {DERIVED[-1]}, not {method!r}")
    say = _Say(quiet or as_json)
    if method == "gaussian":
        _derive_gaussian(out, as_json, say)
        return
    made = _open(out, model, device)
    most = _FULL.rounds if rounds is None else rounds
    if method == "calibrated":
        _derive_calibrated(made, images, as_json, say)
        return
    derivation = derive_measured(
        made,
        rounds=most,
        progress=say.progress,
        on_round=lambda r: say(f"round {r.number}: {r.drift:.3f} +- {r.drift_se:.3f} nats of drift remain"),
    )
    path = _keep_law(made, derivation)
    _keep_config(made, device, rounds=most)
    if as_json:
        sys.stdout.write(path.read_text())
    say(_table(_layer_rows(derivation.kappa)))
    say(f"law written to {path}")


@app.command(
    epilog=_examples(
        "entropy-probe loss --out my-run",
        "entropy-probe loss --images my-images --scale-factors 0.7,1.5",
    ),
)
def loss(
    out: OUT = DEFAULT_OUT,
    model: STAGE_MODEL = None,
    images: IMAGES = None,
    scale_factors: Annotated[
        str, typer.Option(help="Values of g at which the loss is measured, besides 1; each takes as long as another.")
    ] = "0.7,0.85,1.2,1.5,2",
    count: Annotated[
        int,
        typer.Option("--images", help="Real images, spread over all there are; fewer are quicker, tell less."),
    ] = 32,
    device: DEVICE = "auto",
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Measure the denoising loss on real images against g: the factor that the model's own objective asks for."""
    from entropy_probe.evaluation.loss_curves import loss_against_g
    from entropy_probe.strict_json import to_strict_json

    say = _Say(quiet or as_json)
    tried = _parse_scale_factors(scale_factors)
    _check_positive("images", count)
    made = _open(out, model, device)
    true = _images(made, images)
    true = true[:: max(1, len(true.captions) // count)]
    curve = loss_against_g(made.pipeline, true, made.grid.sizes, tried, progress=say.progress)
    path = made.run.write("loss-g.json", to_strict_json(curve.table().to_dict("records")))
    if as_json:
        sys.stdout.write(path.read_text())
    best = curve.best().set_index("size").map("{:.2f}".format).reset_index()
    say(_table(best.rename(columns={"g": "g of least loss"}).to_dict("records")))
    say(f"loss written to {path}: entropy-probe report draws it")


def _derive_gaussian(out: str, as_json: bool, say: _Say) -> None:
    from entropy_probe.estimation import derive_gaussian
    from entropy_probe.laws import to_json
    from entropy_probe.models import short_name
    from entropy_probe.runs import Sweep

    made = Sweep.open(out)
    law = derive_gaussian(made)
    path = made.run.write("gaussian.json", to_json(law))
    if as_json:
        sys.stdout.write(path.read_text())
    say(_table([{"layer": short_name(name), "logit variance": v} for name, v in law.logit_variance.items()]))
    say(f"law written to {path}")


def _derive_calibrated(made: Sweep, images: Path | None, as_json: bool, say: _Say) -> None:
    from entropy_probe.estimation import calibrate
    from entropy_probe.laws import to_json

    calibration = calibrate(made.pipeline, _images(made, images), made.grid.sizes, progress=say.progress)
    path = made.run.write("calibrated.json", to_json(calibration.law))
    if as_json:
        sys.stdout.write(path.read_text())
    say(_table([{**row, "change": f"{row['change']:+.2%}"} for row in calibration.table().to_dict("records")]))
    say(f"law written to {path}")


@app.command(
    epilog=_examples(
        "entropy-probe validate --out my-run",
        "entropy-probe validate --out my-run --laws paper,log,measured --metrics none",
        "entropy-probe validate --metrics inception,owner/clip --images my-images",
    ),
)
def validate(
    out: OUT = DEFAULT_OUT,
    laws: LAWS = "original,paper,measured",
    metrics: METRICS = "auto",
    images: IMAGES = None,
    model: STAGE_MODEL = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Sample a sweep's grid under other laws: how much of the drift each removes, and what becomes of the images.

    Name every law that the report is to show: what an earlier validate found is replaced, its images are kept.
    """
    from entropy_probe.evaluation import validate_sweep

    _check_laws(laws)
    say = _Say(quiet or as_json)
    made = _open(out, model, device)
    judge = _judge(metrics, images, made.manifest.model)
    outcome = validate_sweep(made, _resolve_laws(made, laws), judge=judge, progress=say.progress)
    path = made.run.write("outcome.json", outcome.to_json())
    _keep_config(made, device, laws=laws, metrics=metrics, images=images)
    if as_json:
        sys.stdout.write(outcome.to_json())
    say(_table(outcome.table().drop(columns="level").to_dict("records")))
    for sentence in outcome.verdict():
        say(sentence)
    say(f"outcome written to {path}: entropy-probe report draws it")


@app.command(
    epilog=_examples(
        "entropy-probe report --out my-run",
    ),
)
def report(
    out: OUT = DEFAULT_OUT,
    model: STAGE_MODEL = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Write report.html from what a run directory holds."""
    from entropy_probe.reports import Report

    made = _open(out, model, device)
    page = Report.of(made, command=_command())
    _finish(page, page.save(made.run.path / "report.html"), as_json, _Say(quiet or as_json))


@app.command(epilog=_examples("entropy-probe compare runs/base runs/finetuned --out compare.html"))
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run directories, folders or URLs, two or more.")],
    out: Annotated[str, typer.Option(help="The page.")] = "compare.html",
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Put several runs side by side, such as models or versions of one; nothing is sampled."""
    from entropy_probe.reports import compare as compare_runs

    say = _Say(quiet or as_json)
    comparison = compare_runs(runs, command=_command())
    path = comparison.save(out)
    if as_json:
        sys.stdout.write(comparison.to_json())
    for sentence in comparison.verdict():
        say(sentence)
    say(f"comparison: {path}")


@app.command(
    epilog=_examples(
        'entropy-probe sample "noto red apple" --sizes 32,64,128x96',
        'entropy-probe sample "noto red apple" "flat pizza" --sizes 128 --law paper',
        'entropy-probe sample "noto red apple" --sizes 128 --law entropy-run/law.json',
    ),
)
def sample(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="One or more prompts.", show_default=False)
    ] = None,
    model: MODEL = "reference",
    out: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("samples"),
    sizes: SIZES = None,
    seeds: SEEDS = "0",
    steps: STEPS = 20,
    guidance_scale: GUIDANCE = GUIDANCE_SCALE,
    law: Annotated[str, typer.Option(help="The scaling law: a name, or a JSON file.")] = "original",
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Draw images under a scaling law."""
    from entropy_probe.laws import resolve, scaled
    from entropy_probe.models import check_guidance, check_size, check_steps, format_size, sample_images, training_size

    if not prompt:
        raise InputError('give a prompt, such as: entropy-probe sample "noto red apple" --sizes 32,64')
    check_guidance(guidance_scale)
    made = resolve(law)
    drawn_seeds = _parse_seeds(seeds or "0")
    pipeline = _load(model, device, dtype)
    wanted = _parse_sizes(sizes) or [training_size(pipeline)]
    for size in wanted:
        check_size(pipeline, size)
    check_steps(pipeline, steps or 0)
    say, drawn = _Say(quiet or as_json), []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with scaled(pipeline, made):
            for size in wanted:
                for seed in drawn_seeds:
                    images = sample_images(
                        pipeline, prompt, size, [seed] * len(prompt), steps=steps or 20, guidance_scale=guidance_scale
                    )
                    for number, image in enumerate(images):
                        path = out / f"{number:02d}_{format_size(size)}_s{seed}_{made.name}.png"
                        image.save(path)
                        say(str(path))
                        drawn.append(
                            {"file": str(path), "prompt": prompt[number], "size": format_size(size), "seed": seed}
                        )
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    if as_json:
        _print_json({"law": made.name, "images": drawn})


@app.command(
    epilog=_examples(
        "entropy-probe info",
        "entropy-probe info --model my-folder --sizes 768,1024x512",
    ),
)
def info(
    model: MODEL = "reference",
    sizes: SIZES = None,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
    as_json: JSON = False,
    config: CONFIG = None,
) -> None:
    """Show the attention layers of a model, their training tokens, and their token grids at other sizes."""
    from entropy_probe.models import check_size, format_size, layers, short_name, training_size

    pipeline = _load(model, device, dtype)
    wanted = _parse_sizes(sizes) or []
    for size in wanted:
        check_size(pipeline, size)
    try:
        trained = training_size(pipeline)
    except InputError as error:
        if not wanted:
            raise InputError(f"{error}: give sizes to see its layers at, such as --sizes 1024") from error
        trained = None
    found = layers(pipeline, trained or wanted[0])
    grids = {format_size(size): [layer.grid for layer in layers(pipeline, size)] for size in wanted}
    rows = []
    for number, layer in enumerate(found):
        row: dict[str, Any] = {
            "layer": layer.name,
            "kind": layer.kind,
            "heads": layer.heads,
            "head_width": layer.head_width,
            "key_tokens": layer.key_tokens,
            "training_tokens": layer.training_tokens if trained else None,
        }
        for name, there in grids.items():
            grid = there[number]
            row[f"grid at {name}"] = None if grid is None else f"{grid.height}x{grid.width}"
        rows.append(row)
    if as_json:
        _print_json({"pipeline": type(pipeline).__name__, "training_size": trained and list(trained), "layers": rows})
        return
    table = _table([{**row, "layer": short_name(row["layer"])} for row in rows])
    told = f"trained at {format_size(trained)} pixels" if trained else "which does not tell its training size"
    Console(highlight=False).print(f"{type(pipeline).__name__}, {told}", table)


baseline = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="Keep a model's entropy profile, and see whether it has moved.",
    epilog=_examples(
        "entropy-probe baseline save my-folder --out baseline.json",
        "entropy-probe baseline check my-folder baseline.json",
    ),
)
app.add_typer(baseline, name="baseline")

PROFILED = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, folder of a pipeline, or reference, reference-dit.")
]
KEPT = Annotated[Path, typer.Argument(metavar="FILE", help="A baseline, as `baseline save` writes it.")]
JUNIT = Annotated[Path | None, typer.Option(help="Write JUnit XML, a test case for every layer and size.")]
MARKDOWN = Annotated[Path | None, typer.Option(help="Write a summary in Markdown, as for a pull request.")]


@baseline.command(
    "save",
    epilog=_examples(
        "entropy-probe baseline save reference --out baseline.json",
        "entropy-probe baseline save my-folder --sizes 512,1024 --seeds 0,1,2,3,4",
    ),
)
def baseline_save(
    model: PROFILED,
    out: Annotated[Path, typer.Option(help="The file.")] = Path("entropy-baseline.json"),
    sizes: SIZES = None,
    prompts: PROMPTS = None,
    seeds: SEEDS = None,
    steps: STEPS = None,
    guidance_scale: GUIDANCE = GUIDANCE_SCALE,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Sample a model and keep its entropy profile: layer x head x size, image by image."""
    from entropy_probe.baselines import profile

    say = _Say(quiet or as_json)
    given = {
        "prompts": None if prompts is None else _parse_prompts(prompts, 0),
        "sizes": _parse_sizes(sizes),
        "seeds": None if seeds is None else _parse_seeds(seeds),
        "steps": steps,
    }
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    pipeline = _load(model, device, dtype)
    made = profile(pipeline, **settings, guidance_scale=guidance_scale, model=model, progress=say.progress)
    path = made.save(out)
    if as_json:
        _print_json({"file": str(path), "entropies": len(made.entropy), "images": len(made.entropy.columns)})
    say(f"{len(made.entropy)} mean entropies of {len(made.entropy.columns)} images in {path}")


@baseline.command(
    "check",
    epilog=_examples(
        "entropy-probe baseline check my-folder baseline.json",
        "entropy-probe baseline check my-folder baseline.json --junit results.xml",
    ),
)
def baseline_check(
    model: PROFILED,
    file: KEPT,
    seeds: Annotated[str | None, typer.Option(help="New seeds; those of the baseline see smaller changes.")] = None,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
    junit: JUNIT = None,
    markdown: MARKDOWN = None,
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Sample a model as its baseline was, and compare: exit code 0 if it is the same, 1 if it has moved."""
    from dataclasses import asdict

    from entropy_probe.baselines import Profile, compare, profile

    say = _Say(quiet or as_json)
    kept = Profile.open(file)
    settings = asdict(kept.settings) | ({} if seeds is None else {"seeds": _parse_seeds(seeds)})
    now = profile(_load(model, device, dtype), **settings, model=model, progress=say.progress)
    _conclude(compare(kept, now), junit, markdown, as_json, say)


@baseline.command(
    "diff",
    epilog=_examples(
        "entropy-probe baseline diff before.json after.json",
        "entropy-probe baseline diff before.json after.json --json",
    ),
)
def baseline_diff(
    before: KEPT,
    after: KEPT,
    junit: JUNIT = None,
    markdown: MARKDOWN = None,
    as_json: JSON = False,
    quiet: QUIET = False,
    config: CONFIG = None,
) -> None:
    """Compare two baselines: exit code 0 if they are of the same model as far as can be told, 1 if it has moved."""
    from entropy_probe.baselines import Profile, compare

    comparison = compare(Profile.open(before), Profile.open(after))
    _conclude(comparison, junit, markdown, as_json, _Say(quiet or as_json))


def _conclude(comparison: Comparison, junit: Path | None, markdown: Path | None, as_json: bool, say: _Say) -> None:
    from entropy_probe.baselines import views, write_text

    for path, write in ((junit, views.junit), (markdown, views.markdown)):
        if path is not None:
            write_text(path, write(comparison))
    if as_json:
        sys.stdout.write(comparison.to_json())
    say(views.text(comparison))
    raise typer.Exit(0 if comparison.same else 1)


class _Say:
    """Prints for people on standard error, unless quiet."""

    def __init__(self, quiet: bool) -> None:
        self.progress = not quiet
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    def __call__(self, message: str | Table) -> None:
        if isinstance(message, str):
            self._console.print(for_terminal(message), markup=False, soft_wrap=True)
        else:
            self._console.print(message)


def _grid(
    model: str,
    sizes: str | None,
    prompts: str | None,
    seeds: str | None,
    steps: int | None,
    guidance_scale: float,
    rows: str,
    device: str,
    dtype: str,
    plan: _Plan,
    quick: bool,
    say: _Say,
    least_sizes: int = 1,
) -> tuple[Any, dict[str, Any]]:
    """The pipeline, and the grid and settings as `sweep` takes them."""
    from entropy_probe.models import check_guidance, check_size, check_steps, training_size

    texts = _parse_prompts(prompts, plan.prompts)
    numbers = plan.seeds if seeds is None else _parse_seeds(seeds)
    wanted = _parse_sizes(sizes)
    count = plan.steps if steps is None else steps
    _check_positive("steps", count)
    check_guidance(guidance_scale)
    measured = _parse_rows(rows)
    pipeline = _load(model, device, dtype)
    check_steps(pipeline, count)
    for size in wanted or []:
        check_size(pipeline, size)
    trained = training_size(pipeline)
    if wanted is None:
        wanted = default_sizes(trained, quick)
    elif trained not in wanted:
        say(f"adding the training size, {trained[0]}x{trained[1]}: drift is measured against it")
        wanted.insert(0, trained)
    if len(wanted) < least_sizes:
        raise InputError(f"a law in N needs another size beside the training size, {trained[0]}x{trained[1]}: add one")
    return pipeline, {
        "prompts": texts,
        "sizes": wanted,
        "seeds": numbers,
        "steps": count,
        "guidance_scale": guidance_scale,
        "rows": measured,
    }


def _tell_forecast(pipeline: Any, grid: dict[str, Any], rounds: int, laws: int, as_json: bool) -> None:
    """What the sweep of a grid will take, and at most its refinement in rounds and its validation under laws."""
    from entropy_probe.models import format_size, training_size
    from entropy_probe.runs import forecast

    seeds, trained = len(grid["seeds"]), training_size(pipeline)
    rows, seconds, space = [], 0.0, 0
    for one in forecast(pipeline, **grid):
        refined = 0 if one.size == trained else rounds * ((seeds + 1) // 2)
        cells = one.cells + len(grid["prompts"]) * (refined + laws * seeds)
        seconds, space = seconds + cells * one.seconds, space + cells * one.bytes
        rows.append(
            {
                "size": format_size(one.size),
                "cells": one.cells,
                "batches": one.batches,
                "seconds a cell": one.seconds,
                "kB a cell": one.bytes / 1000,
                "cells in all, at most": cells,
            }
        )
    if as_json:
        _print_json({"sizes": rows, "seconds": seconds, "bytes": space})
        return
    console = Console(highlight=False)
    console.print(_table(rows))
    console.print(f"at most {seconds / 60:.1f} minutes in one process, and {space / 1e6:.1f} MB; nothing was kept")


@dataclass(frozen=True)
class _Where:
    """What samples, and how the model is loaded in this process beside it."""

    engine: Engine
    device: str
    dtype: str


def _engine(engine: str, address: str | None, model: str, device: str, dtype: str, dry_run: bool, here: str) -> _Where:
    """The engine; on a cluster `--device` is that of its workers, and the model is also loaded on the device `here`."""
    from entropy_probe.runs import LocalEngine, RayEngine

    if engine == "local":
        if address is not None:
            raise InputError(f"--address {address!r} is of a Ray cluster: add --engine ray")
        return _Where(LocalEngine(), device, dtype)
    if engine != "ray":
        raise InputError(f"engine must be local or ray, not {engine!r}")
    if dry_run:
        raise InputError("--dry-run measures in this process: leave --engine ray out, where a worker's device is")
    _interrupt_by_exception()
    made = RayEngine.connect(address, model=model, device=device)
    precision = ("float32" if made.device == "cpu" else "float16") if dtype == "auto" else dtype
    return _Where(made, here, precision)


def default_sizes(trained: Size, quick: bool = False) -> list[Size]:
    """Half the training size to three times, one of them wide; `quick` takes fewer and smaller ones."""
    height, width = trained
    factors = [(0.5, 0.5), (1, 1), (1, 1.5), (2, 2)] if quick else [(0.5, 0.5), (1, 1), (1, 2), (2, 2), (3, 3)]
    return [(int(height * a) // 8 * 8, int(width * b) // 8 * 8) for a, b in factors]


def _open(out: str, model: str | None, device: str) -> Sweep:
    from entropy_probe.runs import RunDirectory, place
    from entropy_probe.runs import Sweep as Opened

    manifest = RunDirectory(place(out)).manifest()
    return Opened.open(out, _load(model or manifest.model, device, manifest.dtype))


def _load(model: str, device: str, dtype: str) -> Any:
    from entropy_probe.models import load, quiet_libraries

    quiet_libraries()
    pipeline = load(model, device=device, dtype=dtype)
    _interrupt_by_exception()
    return pipeline


def _judge(metrics: str, images: Path | None, model: str) -> Judge | None:
    """What `--metrics` asks for."""
    from entropy_probe.evaluation import CRITIC, WHITE, judge_for
    from entropy_probe.models import REFERENCES, quiet_libraries
    from entropy_probe.reference import images as drawings

    quiet_libraries()
    bundled = model in REFERENCES
    known = CRITIC if bundled else "none"
    networks = [known if name == "auto" else name for name in _names(metrics)]
    if networks == ["none"]:
        return None
    if "none" in networks:
        raise InputError(f"--metrics {metrics}: none stands alone, and auto is none for a model that is not bundled")
    if CRITIC in networks and not bundled and images is None:
        raise InputError("the critic knows the drawings of the bundled models only: give --images, or a CLIP model")
    if bundled and images is None:
        return replace(judge_for(networks, drawings()), background=WHITE)
    return judge_for(networks, images)


def _images(made: Sweep, images: Path | None) -> ImageFolder | Drawings:
    """The captioned images that the denoising loss is measured on."""
    from entropy_probe.models import REFERENCES, ImageFolder
    from entropy_probe.reference import images

    if images is not None:
        return ImageFolder.open(images)
    if made.manifest.model in REFERENCES:
        return images()[::CALIBRATED_ON]
    raise InputError("the calibrated law needs real images with captions: give a folder of them with --images")


def _keep_config(made: Sweep, device: str, **settings: Any) -> None:
    """Write config.yaml, which makes the run again elsewhere: what it said, what is sampled, and more settings."""
    from entropy_probe.cli.config import read_config, to_yaml
    from entropy_probe.evaluation import NAMED
    from entropy_probe.laws import LAWS
    from entropy_probe.models import REFERENCES, format_size

    path = made.run.path / "config.yaml"
    before = read_config(path, _known()) if path.exists() else {}
    sampled = {
        "model": _lasting(made.manifest.model, REFERENCES),
        "sizes": list(map(format_size, made.grid.sizes)),
        "prompts": list(made.grid.prompts),
        "seeds": list(made.grid.seeds),
        "steps": made.manifest.steps,
        "guidance-scale": made.manifest.guidance_scale,
        "rows": made.manifest.rows,
        "device": device,
        "dtype": made.manifest.dtype,
    }
    if "laws" in settings:
        settings["laws"] = [_lasting(name, LAWS) for name in _names(settings["laws"])]
    if "metrics" in settings:
        settings["metrics"] = ",".join(_lasting(name, (*NAMED, "auto", "none")) for name in _names(settings["metrics"]))
    if settings.get("images"):
        settings["images"] = _lasting(settings["images"])
    kept = {name: value for name, value in {**before, **sampled, **settings}.items() if value is not None}
    made.run.write(path.name, to_yaml(kept))


def _lasting(name: str | Path, known: Collection[str] = ()) -> str:
    """A name, or the path of a file or folder as it is understood from everywhere."""
    return str(Path(name).absolute()) if name not in known and Path(name).exists() else str(name)


def _commands() -> Iterator[Any]:
    """All commands, those of `baseline` too."""
    commands = list(typer.main.get_group(app).commands.values())
    for command in commands:
        yield from getattr(command, "commands", {}).values() if hasattr(command, "commands") else [command]


def _known() -> set[str]:
    return {name for command in _commands() for name in _settings(command)}


def _settings(command: Any) -> dict[str, str]:
    """The parameters of a command that a config file may set, by the name of their flag."""
    flags = {flag[2:]: one.name for one in command.params for flag in one.opts if flag.startswith("--")}
    return {flag: name for flag, name in flags.items() if flag not in ("config", "help")}


def _keep_law(made: Sweep, derivation: Any) -> Path:
    return made.run.write("law.json", derivation.to_json())


def _names(laws: str) -> list[str]:
    return [name.strip() for name in laws.split(",") if name.strip()]


def _check_laws(laws: str) -> None:
    """Refuse an unknown law before anything is sampled."""
    from entropy_probe.laws import DERIVED, resolve

    names = _names(laws)
    if not names:
        raise InputError("the list of laws is empty: give at least one, such as original,paper")
    if len(set(names)) < len(names):
        raise InputError(f"the list of laws holds {next(n for n in names if names.count(n) > 1)!r} twice")
    for name in names:
        if name not in DERIVED:
            resolve(name, besides=DERIVED)


_DERIVED = {"measured": "law.json", "calibrated": "calibrated.json"}
"""Where a run directory keeps the laws that were derived from it."""


def _resolve_laws(made: Sweep, laws: str) -> list[ScalingLaw]:
    """The laws by name; `measured` and `calibrated` are the run's own, `gaussian` comes from its logit variance."""
    from entropy_probe.estimation import derive_gaussian
    from entropy_probe.laws import from_json, resolve

    found: list[ScalingLaw] = []
    for name in _names(laws):
        if name in _DERIVED:
            if not (made.run.path / _DERIVED[name]).exists():
                raise InputError(f"{made.run.path} has no {name} law: run entropy-probe derive --method {name} first")
            found.append(from_json(made.run.read_text(_DERIVED[name])))
        elif name == "gaussian":
            found.append(derive_gaussian(made))
        else:
            found.append(resolve(name))
    return found


def _parse_sizes(text: str | None) -> list[Size] | None:
    from entropy_probe.models import parse_size

    return None if text is None else [parse_size(part) for part in text.split(",")]


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"seeds {text!r}: give whole numbers, such as 0,1") from None
    if min(seeds) < 0:
        raise InputError(f"seeds must not be negative, but one is {min(seeds)}")
    return seeds


def _parse_shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not 1 <= (_counted(number) or 0) <= (_counted(count) or 0):
        raise InputError(f"shard {text[:100]!r}: give i/n, such as 1/4, with i from 1 to n")
    return int(number), int(count)


def _parse_rows(text: str) -> Any:
    if text in ("all", "auto"):
        return text
    if not (rows := _counted(text)):
        raise InputError(f"rows must be all, auto or a number from 1, not {text[:100]!r}")
    return rows


def _parse_scale_factors(text: str) -> list[float]:
    try:
        values = [float(part) for part in _names(text)]
    except ValueError:
        values = []
    if not {*values} - {1.0} or not all(0 <= value < math.inf for value in values):
        raise InputError(f"scale_factors are numbers of 0 or more besides 1, such as 0.7,1.5, not {text!r:.100}")
    return values


def _counted(text: str) -> int | None:
    """A number of things in plain digits; None for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else None


def _parse_prompts(text: str | None, count: int) -> list[str]:
    from entropy_probe.reference import prompts as bundled

    if text is not None and "\n" in text:
        return _prompts_of(text, "the text of the prompts")
    if text is None or re.fullmatch("-?[0-9]{1,9}", text):
        wanted = count if text is None else int(text)
        _check_positive("prompts", wanted)
        known = bundled()
        if wanted > len(known):
            raise InputError(f"there are {len(known)} bundled prompts, not {wanted}: give a file for more")
        return known[:wanted]
    try:
        content = Path(text).read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"cannot read the prompts file {text[:200]!r}: {cause}; give a text file with one prompt a line, or how "
            "many of the bundled prompts"
        ) from error
    return _prompts_of(content, f"the prompts file {text!r}")


def _prompts_of(text: str, source: str) -> list[str]:
    lines = (line.strip() for line in text.split("\n"))
    prompts = list(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise InputError(f"{source} is empty: write one prompt a line")
    return prompts


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be at least 1, not {value}")


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for number, name in enumerate(rows[0]):
        table.add_column(name, no_wrap=number == 0)
    for row in rows:
        cells = (f"{value:.3f}" if isinstance(value, float) else str(value or "") for value in row.values())
        table.add_row(*(Text(for_terminal(cell)) for cell in cells))
    return table


def _layer_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the terminal, with short names of the layers."""
    from entropy_probe.models import short_name

    return [{**row, "layer": short_name(row["layer"])} for row in frame.to_dict("records")]


def _finish(page: Any, path: Path, as_json: bool, say: _Say) -> None:
    if as_json:
        sys.stdout.write(path.with_name("report.json").read_text())
    for sentence in page.verdict():
        say(sentence)
    say(f"report: {path}")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _interrupt_at_once() -> None:
    """Until there is something to put in order, Ctrl-C ends the process itself.

    An exception in the middle of what torch does while it is imported can abort the process, or be lost.
    """

    def leave(*_: object) -> None:
        os.write(2, f"{INTERRUPTION}\n".encode())
        os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def _interrupt_by_exception() -> None:
    if callable(signal.getsignal(signal.SIGINT)):  # it may be ignored, as under nohup
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _command() -> str:
    return shlex.join(["entropy-probe", *sys.argv[1:]])


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)

    def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        errors.print(one_line(f"warning: {message}"), markup=False)

    before = signal.getsignal(signal.SIGINT)
    _interrupt_at_once()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="entropy_probe")
    warnings.showwarning = show_warning
    try:
        code = app(standalone_mode=False)
    except (InputError, CaptureError) as error:
        errors.print(one_line(f"error: {error}"), markup=False)
        code = 2
    except IncompleteError as error:
        errors.print(one_line(f"error: {error}"), markup=False)
        code = FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # Typer carries a private copy of click: its usage errors are known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        if error.format_message():  # without a command there is help to read, and nothing to say
            errors.print(one_line(f"error: {error.format_message()}"), markup=False)
        code = 2
    finally:
        signal.signal(signal.SIGINT, before)
    if code == INTERRUPTED:
        errors.print(INTERRUPTION, markup=False)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
