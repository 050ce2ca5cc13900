"""Define the commands that analyse a run directory: fit, derive, loss, validate, report, compare."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from entropy_probe.cli import stages
from entropy_probe.cli.groups import examples, new_app
from entropy_probe.cli.loading import choose_scorer, load_images, open_for_report, open_run
from entropy_probe.cli.option_groups import FULL
from entropy_probe.cli.options import (
    DEFAULT_LAWS,
    DEFAULT_OUT,
    EVALUATION_PANEL,
    OUTPUT_PANEL,
    ConfigOption,
    DeviceOption,
    FiguresOption,
    ImagesOption,
    JsonOption,
    LawsOption,
    LevelOption,
    MethodOption,
    MetricsOption,
    OutOption,
    QuietOption,
    RoundsOption,
    StageModelOption,
    WidthOption,
)
from entropy_probe.cli.output import (
    Messages,
    command_line,
    factor_rows,
    layer_rows,
    loss_change_rows,
    make_table,
    print_verdict,
)
from entropy_probe.cli.parsing import check_laws, check_positive, parse_scale_factors
from entropy_probe.cli.settings import save_config

PANEL = "Analyse a run"

app = new_app()


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "entropy-probe fit --out my-run",
        "entropy-probe fit --out my-run --json",
    ),
)
def fit(
    out: OutOption = DEFAULT_OUT, as_json: JsonOption = False, quiet: QuietOption = False, config: ConfigOption = None
) -> None:
    """Fit H = a + b ln N to a sweep, for each layer and for all layers together."""
    from entropy_probe.runs import Sweep

    fitted = stages.fit_and_save(Sweep.open(out))
    if as_json:
        sys.stdout.write(fitted.to_json())
    messages = Messages(quiet or as_json)
    columns = ["layer", "slope", "slope_se", "slope_low", "slope_high", "slope_below", "slope_above", "r_squared"]
    messages.print(make_table(layer_rows(fitted.table()[columns])))
    messages.print(str(fitted))


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "entropy-probe derive --out my-run",
        "entropy-probe derive --out my-run --level head",
        "entropy-probe derive --out my-run --method gaussian",
        "entropy-probe derive --out my-run --method calibrated",
        "entropy-probe derive --method calibrated --real-images my-images",
    ),
)
def derive(
    context: typer.Context,
    out: OutOption = DEFAULT_OUT,
    model: StageModelOption = None,
    method: MethodOption = "measured",
    level: LevelOption = "layer",
    rounds: RoundsOption = None,
    images: ImagesOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Derive a scaling law from a sweep, and save it in the run directory."""
    from entropy_probe.estimation import check_level, check_method
    from entropy_probe.runs import Sweep

    check_method(method)
    check_level(level, method)
    messages = Messages(quiet or as_json)
    sampled = Sweep.open(out) if method == "gaussian" else open_run(out, model, device)
    real_images = load_images(sampled, images) if method == "calibrated" else None
    max_rounds = FULL.rounds if rounds is None else rounds
    derivation, path = stages.derive_and_save(sampled, method, max_rounds, real_images, messages, level)
    if method == "measured":
        save_config(context, sampled, device=device, rounds=max_rounds)
    if as_json:
        sys.stdout.write(path.read_text())
    messages.print(make_table(factor_rows(derivation)))
    if derivation.calibration:
        messages.print(make_table(loss_change_rows(derivation.calibration)))
    messages.print(f"law: {path}")


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "entropy-probe loss --out my-run",
        "entropy-probe loss --real-images my-images --scale-factors 0.7,1.5",
    ),
)
def loss(
    out: OutOption = DEFAULT_OUT,
    model: StageModelOption = None,
    images: ImagesOption = None,
    scale_factors: Annotated[
        str,
        typer.Option(
            rich_help_panel=EVALUATION_PANEL, help="Values of g to measure. The value 1 is always measured too."
        ),
    ] = "0.7,0.85,1.2,1.5,2",
    image_count: Annotated[
        int,
        typer.Option(
            rich_help_panel=EVALUATION_PANEL,
            help="Number of real images, spread evenly over the dataset. Fewer are faster but less precise.",
        ),
    ] = 32,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Measure the denoising loss on real images as a function of the scale factor g."""
    from entropy_probe.evaluation.loss_curves import loss as measure_loss
    from entropy_probe.strict_json import to_strict_json

    messages = Messages(quiet or as_json)
    values = parse_scale_factors(scale_factors)
    check_positive("image-count", image_count)
    sampled = open_run(out, model, device)
    real_images = load_images(sampled, images)
    real_images = real_images[:: max(1, len(real_images.captions) // image_count)]
    curve = measure_loss(sampled.pipeline, real_images, sampled.grid.sizes, values, progress=messages.progress)
    path = sampled.run.write("loss-g.json", to_strict_json(curve.table().to_dict("records")))
    if as_json:
        sys.stdout.write(path.read_text())
    best = curve.best()[["size", "optimum"]].rename(columns={"optimum": "g with minimum loss"})
    messages.print(make_table(best.to_dict("records")))
    messages.print(f"loss: {path} (run entropy-probe report to plot it)")


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "entropy-probe validate --out my-run",
        "entropy-probe validate --out my-run --laws paper,log,measured --metrics none",
        "entropy-probe validate --metrics owner/clip --real-images my-images",
    ),
)
def validate(
    context: typer.Context,
    out: OutOption = DEFAULT_OUT,
    laws: LawsOption = DEFAULT_LAWS,
    metrics: MetricsOption = "auto",
    images: ImagesOption = None,
    model: StageModelOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Sample the grid under other scaling laws, and measure how much drift each removes and how the images change.

    This replaces an earlier validation result: list every law that the report should show. Existing images are reused.
    """
    check_laws(laws)
    messages = Messages(quiet or as_json)
    sampled = open_run(out, model, device)
    scorer = choose_scorer(metrics, images, sampled.manifest.model)
    outcome, path = stages.validate_and_save(sampled, laws, scorer, messages)
    save_config(context, sampled, device=device, laws=laws, metrics=metrics, images=images)
    if as_json:
        sys.stdout.write(outcome.to_json())
    messages.print(make_table(outcome.table().drop(columns="level").to_dict("records")))
    for sentence in outcome.verdict():
        messages.print(sentence)
    messages.print(f"outcome: {path} (run entropy-probe report to plot it)")


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "entropy-probe report --out my-run",
        "entropy-probe report --out my-run --figures pdf --width double",
    ),
)
def report(
    out: OutOption = DEFAULT_OUT,
    figures: FiguresOption = None,
    width: WidthOption = "single",
    model: StageModelOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Write report.html from the results in a run directory.

    With --figures, also write every figure and table for a paper to the folder figures of the run directory.
    """
    from entropy_probe.plots import FORMATS, WIDTHS, one_of
    from entropy_probe.reports import Report

    chosen_width = one_of("width", width, tuple(WIDTHS))
    chosen_format = None if figures is None else one_of("figures", figures, FORMATS)
    messages = Messages(quiet or as_json)
    sampled = open_for_report(out, model, device, messages)
    page = Report.of(sampled, command=command_line())
    if chosen_format:
        files = page.save_figures(sampled.run.path / "figures", chosen_format, chosen_width)
        messages.print(f"figures: {files[0].parent} ({len(files)} files)")
    print_verdict(page.verdict(), page.save(sampled.run.path / "report.html", data=True), as_json, messages)


@app.command(
    rich_help_panel=PANEL, epilog=examples("entropy-probe compare runs/base runs/finetuned --out compare.html")
)
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Two or more run directories: folders or URLs.")],
    out: Annotated[str, typer.Option(rich_help_panel=OUTPUT_PANEL, help="HTML file to write.")] = "compare.html",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare runs of several models, or of versions of one model, on one page. Nothing is sampled."""
    from entropy_probe.reports import compare as compare_runs
    from entropy_probe.runs import check_file_name, open_location

    messages = Messages(quiet or as_json)
    check_file_name(open_location(out))
    comparison = compare_runs(runs, command=command_line())
    path = comparison.save(out)
    if as_json:
        sys.stdout.write(comparison.to_json())
    for sentence in comparison.verdict():
        messages.print(sentence)
    messages.print(f"comparison: {path}")
