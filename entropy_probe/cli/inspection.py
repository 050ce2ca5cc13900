"""Define the commands that show the properties of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from entropy_probe.cli.groups import examples, new_app
from entropy_probe.cli.loading import load_pipeline
from entropy_probe.cli.options import (
    ConfigOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    SizesOption,
)
from entropy_probe.cli.output import make_table, print_json
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
def info(
    model: ModelOption = "reference",
    sizes: SizesOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show the attention layers of a model, their training tokens, and their token grids at other sizes."""
    from entropy_probe.models import check_size, format_size, short_name

    pipeline = load_pipeline(model, device, dtype)
    size_list = parse_sizes(sizes) or []
    for size in size_list:
        check_size(pipeline, size)
    trained = _training_size(pipeline, required=not size_list)
    rows = _layer_table(pipeline, trained, size_list)
    name = type(pipeline).__name__
    if as_json:
        print_json({"pipeline": name, "training_size": trained and list(trained), "layers": rows})
        return
    size_text = f"trained at {format_size(trained)} pixels" if trained else "training size unknown"
    table = make_table([{**row, "layer": short_name(row["layer"])} for row in rows])
    Console(highlight=False).print(f"{name}, {size_text}", table)


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
