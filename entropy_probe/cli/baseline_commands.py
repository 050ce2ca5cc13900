"""Define the commands that save and check the entropy profile of a model: baseline save, check, diff."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entropy_probe.cli.grids import chosen_prompts, prompts_for
from entropy_probe.cli.grouping import grouped
from entropy_probe.cli.groups import examples, new_app
from entropy_probe.cli.loading import load_pipeline
from entropy_probe.cli.option_groups import CallOptions, LoadOptions
from entropy_probe.cli.options import (
    GRID_PANEL,
    OUTPUT_PANEL,
    ConfigOption,
    GuidanceOption,
    JsonOption,
    PromptOption,
    PromptsOption,
    QuietOption,
    SeedsOption,
    SizesOption,
    StepsOption,
)
from entropy_probe.cli.output import Messages, print_json
from entropy_probe.cli.parsing import parse_seeds, parse_sizes

if TYPE_CHECKING:
    from entropy_probe.baselines import ProfileComparison

app = new_app(
    help="Save the entropy profile of a model, and check whether it has changed.",
    epilog=examples(
        "entropy-probe baseline save my-folder --out baseline.json",
        "entropy-probe baseline check my-folder baseline.json",
    ),
)

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Hub id, folder of a diffusers pipeline, or reference, reference-dit."),
]
BaselineArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A file written by `baseline save`.")]
JunitOption = Annotated[
    Path | None,
    typer.Option(rich_help_panel=OUTPUT_PANEL, help="Write JUnit XML with one test case per layer and size."),
]
MarkdownOption = Annotated[
    Path | None, typer.Option(rich_help_panel=OUTPUT_PANEL, help="Write a Markdown summary, for a pull request.")
]


@app.command(
    epilog=examples(
        "entropy-probe baseline save reference --out baseline.json",
        "entropy-probe baseline save my-folder --sizes 512,1024 --seeds 0,1,2,3,4",
    ),
)
@grouped
def save(
    load: LoadOptions,
    call: CallOptions,
    model: ModelArgument,
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT_PANEL, help="File to write.")] = Path(
        "entropy-baseline.json"
    ),
    sizes: SizesOption = None,
    prompts: PromptsOption = None,
    prompt: PromptOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Sample a model and save its entropy profile: every head, size and image.

    A baseline needs at least 8 images per size: prompts x seeds. By default, it has 4 x 5.
    """
    from entropy_probe.baselines import PROMPTS, profile
    from entropy_probe.runs import check_file_name

    messages = Messages(quiet or as_json)
    check_file_name(out)
    options = {
        "sizes": parse_sizes(sizes),
        "seeds": None if seeds is None else parse_seeds(seeds),
        "steps": steps,
        "guidance_scale": guidance_scale,
    }
    settings: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    given, chosen = call.read(), chosen_prompts(prompts, prompt, 0)
    pipeline = load_pipeline(load.source(model), load.device, load.dtype)
    chosen, notice = prompts_for(pipeline, chosen, model, PROMPTS)
    measured = profile(
        pipeline, prompts=chosen, pipeline_kwargs=given, **settings, model=model, progress=messages.progress
    )
    path = measured.save(out)
    entropies, images = len(measured.entropy), len(measured.entropy.columns)
    if as_json:
        print_json({"file": str(path), "entropies": entropies, "images": images})
    for line in (*notice, f"{entropies} mean entropies over {images} images: {path}"):
        messages.print(line)


@app.command(
    epilog=examples(
        "entropy-probe baseline check my-folder baseline.json",
        "entropy-probe baseline check my-folder baseline.json --junit results.xml",
    ),
)
@grouped
def check(
    load: LoadOptions,
    call: CallOptions,
    model: ModelArgument,
    file: BaselineArgument,
    seeds: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=GRID_PANEL,
            help="New seeds. The seeds of the baseline, which are the default, detect smaller changes.",
        ),
    ] = None,
    junit: JunitOption = None,
    markdown: MarkdownOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Sample a model with the settings of a baseline and compare. Exit code 0: no change detected, 1: changed.

    Give the image and other arguments of the pipeline's call again; the baseline contains only their hashes.
    """
    from entropy_probe.baselines import Profile, compare, profile

    messages = Messages(quiet or as_json)
    baseline = Profile.open(file)
    settings = baseline.settings.arguments() | ({} if seeds is None else {"seeds": parse_seeds(seeds)})
    given = call.read()
    baseline.settings.check_same(given)
    pipeline = load_pipeline(load.source(model), load.device, load.dtype)
    measured = profile(pipeline, **settings, pipeline_kwargs=given, model=model, progress=messages.progress)
    _print_comparison(compare(baseline, measured), junit, markdown, as_json, messages)


@app.command(
    epilog=examples(
        "entropy-probe baseline diff before.json after.json",
        "entropy-probe baseline diff before.json after.json --json",
    ),
)
def diff(
    before: BaselineArgument,
    after: BaselineArgument,
    junit: JunitOption = None,
    markdown: MarkdownOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Compare two baseline files. Exit code 0: no change detected, 1: changed."""
    from entropy_probe.baselines import Profile, compare

    comparison = compare(Profile.open(before), Profile.open(after))
    _print_comparison(comparison, junit, markdown, as_json, Messages(quiet or as_json))


def _print_comparison(
    comparison: ProfileComparison, junit: Path | None, markdown: Path | None, as_json: bool, messages: Messages
) -> None:
    """Print a comparison, write the requested files, and exit with code 0 or 1."""
    from entropy_probe.baselines import output, write_text

    if junit is not None:
        write_text(junit, output.junit(comparison))
    if markdown is not None:
        write_text(markdown, output.markdown(comparison))
    if as_json:
        sys.stdout.write(comparison.to_json())
    messages.print_lines(output.text(comparison))
    raise typer.Exit(0 if comparison.same else 1)
