"""Read the further arguments of a pipeline's call from a YAML file."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from entropy_probe.errors import InputError
from entropy_probe.paths import is_file
from entropy_probe.strict_json import read_bounded

FILE = "pipeline-kwargs.yaml"
"""Name of the file in a run directory."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Values that end with one of these are names of image files."""


def read_pipeline_kwargs(path: Path | None) -> dict[str, Any]:
    """Return the arguments in a YAML file, with the images that it names; none without a file.

    Raises:
        InputError: if the file is not a mapping of names to values, or an image cannot be read.

    >>> read_pipeline_kwargs(None)
    {}
    """
    if path is None:
        return {}
    try:
        content = yaml.safe_load(read_bounded(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} must contain one argument per line, such as `image: photo.png`")
    return {name: _value(value, path.parent) for name, value in content.items()}


def recorded_pipeline_kwargs(run: Path) -> dict[str, Any]:
    """Return the arguments in the file that the config.yaml of a run directory names; none if it names no file."""
    name = recorded_settings(run).get("pipeline-kwargs")
    return read_pipeline_kwargs(run / name) if isinstance(name, str) else {}


def recorded_settings(run: Path) -> dict[str, Any]:
    """Return the settings in the config.yaml of a run directory; none if it has no such file.

    Raises:
        InputError: if the file is damaged.
    """
    path = run / "config.yaml"
    if not path.exists():
        return {}
    try:
        recorded = yaml.safe_load(read_bounded(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    return recorded if isinstance(recorded, dict) else {}


def save_pipeline_kwargs(run: Path, given: Mapping[str, Any]) -> str | None:
    """Write arguments and their images into a run directory, so that it needs no other files.

    Args:
        run: the run directory.
        given: the arguments, as `read_pipeline_kwargs` returns them.

    Returns:
        The name of the file in the run directory; None without arguments.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     name = save_pipeline_kwargs(Path(folder), {"strength": 0.5})
    ...     read_pipeline_kwargs(Path(folder) / name)
    {'strength': 0.5}
    """
    from PIL import Image

    from entropy_probe.runs import write_atomically

    if not given:
        return None
    count = itertools.count(1)

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, Image.Image):
            return value
        name, content = f"pipeline-kwargs-{next(count)}.png", io.BytesIO()
        value.save(content, format="PNG")
        write_atomically(run / name, content.getvalue())
        return name

    text = yaml.safe_dump({name: plain(value) for name, value in given.items()}, sort_keys=False, allow_unicode=True)
    write_atomically(run / FILE, text.encode())
    return FILE


def _value(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_value(item, folder) for item in value]
    if not (isinstance(value, str) and value.lower().endswith(IMAGES)):
        return value
    return read_image(folder / value)


def read_image(path: Path) -> Any:
    """Return an image: in shades of grey if the file has no colours, as masks.

    Raises:
        InputError: if the file cannot be read.

    >>> read_image(Path("no-such.png"))
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: cannot read no-such.png as an image: there is no such file
    """
    from PIL import Image

    if not is_file(path):
        raise InputError(f"cannot read {path} as an image: there is no such file")
    try:
        with Image.open(path) as image:
            return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:300]
        raise InputError(f"cannot read {path} as an image: {reason}") from error
