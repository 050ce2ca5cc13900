"""Define the commands that show the properties of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from entropy_probe.cli.grouping import grouped
from entropy_probe.cli.groups import examples, new_app
from entropy_probe.cli.loading import load_pipeline
from entropy_probe.cli.option_groups import LoadOptions
from entropy_probe.cli.options import (
    ConfigOption,
    JsonOption,
    ModelOption,
    SizesOption,
)
from entropy_probe.cli.output import make_table, print_json, print_line, print_table
from entropy_probe.cli.parsing import parse_sizes
from entropy_probe.errors import InputError

if TYPE_CHECKING:
    from entropy_probe.models import Size

app = new_app()


@app.command(
    rich_help_panel="Inspect and test a model",
    epilog=examples(
        "entropy-probe info",
        "entropy-probe info --model my-folder --sizes 768,1024x512",
    ),
)
@grouped
def info(
    *,
    model: ModelOption = "reference",
    load: LoadOptions,
    sizes: SizesOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show the attention layers of a model, their training tokens, and their token grids at other sizes."""
    from entropy_probe.attention import default_frames
    from entropy_probe.models import check_size, format_size, short_name

    pipeline = load_pipeline(load.source(model), load.device, load.dtype)
    size_list = parse_sizes(sizes) or []
    for size in size_list:
        check_size(pipeline, size)
    trained = _training_size(pipeline, required=not size_list)
    rows = _layer_table(pipeline, trained, size_list)
    name = type(pipeline).__name__
    if as_json:
        length = default_frames(pipeline)
        pixels = trained and list(trained)
        print_json({"pipeline": name, "training_size": pixels, "training_frames": length, "layers": rows})
        return
    size_text = f"trained at {format_size(trained)} pixels" if trained else "training size unknown"
    if (frames := default_frames(pipeline)) is not None:
        size_text += f" and {frames} frames; T counts the tokens of all frames in spatio-temporal attention"
    hidden = {"axes"} if all(row["axes"] == "spatial" for row in rows) else set()
    shown = [{**row, "layer": short_name(row["layer"])} for row in rows]
    table = make_table([{key: value for key, value in row.items() if key not in hidden} for row in shown])
    console = Console(highlight=False)
    print_line(console, f"{name}, {size_text}")
    print_table(console, table)


def _training_size(pipeline: Any, *, required: bool) -> Size | None:
    """Return the training size, or None if it is unknown and not required."""
    from entropy_probe.models import training_size

    try:
        return training_size(pipeline)
    except InputError as error:
        if required:
            raise InputError(f"{error}, or pass sizes at which to show the layers, such as --sizes 1024") from error
        return None


def _layer_table(pipeline: Any, trained: Size | None, sizes: list[Size]) -> list[dict[str, Any]]:
    """Return one row per attention layer, in the order in which the layers run."""
    from entropy_probe.models import format_size, layers

    grids = {format_size(size): [layer.grid for layer in layers(pipeline, size)] for size in sizes}
    rows = []
    for number, layer in enumerate(layers(pipeline, trained or sizes[0])):
        row: dict[str, Any] = {
            "layer": layer.name,
            "kind": layer.kind,
            "axes": layer.axes,
            "heads": layer.heads,
            "head_width": layer.head_width,
            "key_tokens": layer.key_tokens,
            "training_tokens": layer.training_tokens if trained else None,
        }
        for name, layer_grids in grids.items():
            grid = layer_grids[number]
            row[f"grid at {name}"] = None if grid is None else f"{grid.height}x{grid.width}"
        rows.append(row)
    return rows
