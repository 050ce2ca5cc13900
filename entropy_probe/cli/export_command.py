"""Define the command that writes a law for other programs: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from entropy_probe.cli.grouping import grouped
from entropy_probe.cli.groups import examples, new_app
from entropy_probe.cli.loading import load_pipeline
from entropy_probe.cli.option_groups import LoadOptions
from entropy_probe.cli.options import (
    GRID_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    ConfigOption,
    JsonOption,
    QuietOption,
    TokensOption,
)
from entropy_probe.cli.output import Messages, print_json

app = new_app()


@app.command(
    rich_help_panel="Use a law elsewhere",
    epilog=examples(
        "entropy-probe export law.json --to diffusers --size 96 --out my_law.py",
        "entropy-probe export law.json --to comfyui --out custom_nodes/my_law",
        "entropy-probe export paper --to weights --model sd --size 96 --out sd.sft",
    ),
)
@grouped
def export(
    *,
    law: Annotated[str, typer.Argument(metavar="LAW", help="Scaling law: a name or a JSON file.")],
    to: Annotated[
        str,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            help="diffusers writes a Python file that needs only torch. comfyui writes a folder for custom_nodes. "
            "weights writes the denoiser with scaled queries as a safetensors file.",
            autocompletion=lambda: ["diffusers", "comfyui", "weights"],
        ),
    ],
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT_PANEL, help="File or folder to write.")],
    size: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=GRID_PANEL,
            help="Image size in pixels: one number is a square; 96x128 is height 96, width 128. comfyui serves all "
            "sizes.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MODEL_PANEL,
            help="Hub id, folder of a diffusers pipeline, or a bundled model. A derived law needs it only for weights.",
        ),
    ] = None,
    load: LoadOptions,
    tokens: TokensOption = "image",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Write a law for use without entropy-probe: a file for diffusers, a ComfyUI node, or scaled weights."""
    from entropy_probe.laws import export as export_law
    from entropy_probe.laws import resolve
    from entropy_probe.models import format_size, parse_size

    resolved = resolve(law)
    pixels = None if size is None else parse_size(size)
    pipeline = None if model is None else load_pipeline(load.source(model), load.device, load.dtype)
    path = export_law(resolved, cast(Any, to), out, size=pixels, model=pipeline, tokens=cast(Any, tokens))
    if as_json:
        print_json({"law": resolved.name, "to": to, "file": str(path), "size": pixels and format_size(pixels)})
    Messages(quiet or as_json).print(f"{resolved.name} law: {path}")
