"""Check, before a model is loaded, that all its weights are safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entropy_probe.errors import InputError
from entropy_probe.strict_json import read_bounded

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_FIX = "load the model where you trust it, and save it with save_pretrained(..., safe_serialization=True)"
_DEPTHS = ("", "*/", "*/*/")
"""The pipeline, its components, and the components of a pipeline within a pipeline. Links are followed."""


def check_safetensors_only(folder: Path) -> None:
    """Refuse a folder from which diffusers or transformers would read pickled weights. Nothing is loaded.

    They read more files than the usual ones: the files that a safetensors index names, the file of the setting
    `transformers_weights`, and the weights of a PEFT adapter. None of them checks that these are safetensors.

    Args:
        folder: folder of a pipeline or of one model.

    Raises:
        InputError: if a component has only pickled weights, or a file refers to weights that are in another folder
            or are not safetensors.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("config.json", "model.bin"):
    ...         _ = (Path(folder) / name).write_text("{}")
    ...     check_safetensors_only(Path(folder))
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: ... has only pickled weights (model.bin), which can run code when loaded: ...
    """
    for config in _find(folder, "config.json"):
        _check_component(config.parent)
        _check_setting(config)
    for index in _find(folder, "*.safetensors.index*.json"):
        _check_index(index)
    for adapter in _find(folder, "adapter_config.json"):
        _check_adapter(adapter)


def _find(folder: Path, pattern: str) -> Iterator[Path]:
    for depth in _DEPTHS:
        yield from sorted(folder.glob(depth + pattern))


def _check_component(folder: Path) -> None:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles and not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has only pickled weights ({pickles[0]}), which can run code when loaded: {_FIX}")


def _check_setting(config: Path) -> None:
    name = read_fields(config).get("transformers_weights")
    if name is not None and not _is_local_name(name, (".safetensors", ".safetensors.index.json")):
        raise InputError(
            f"{config}: transformers_weights must name a .safetensors file next to it, got {name!r}: {_FIX}"
        )


def _check_index(index: Path) -> None:
    shards = read_fields(index).get("weight_map", {})
    for name in shards.values() if isinstance(shards, dict) else [shards]:
        if not _is_local_name(name, (".safetensors",)):
            raise InputError(f"{index} must name only .safetensors files next to it, got {name!r}: {_FIX}")


def _check_adapter(adapter: Path) -> None:
    folder = adapter.parent
    if not (folder / "config.json").is_file():
        raise InputError(f"{adapter} refers to weights in another folder: save the complete component instead")
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} has an adapter without adapter_model.safetensors: {_FIX}")


def _is_local_name(name: Any, suffixes: tuple[str, ...]) -> bool:
    """Return whether a name is a plain file name with one of these suffixes, compared as diffusers does: by case."""
    return isinstance(name, str) and name.endswith(suffixes) and not set(name) & set("/\\:")


def read_fields(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: if the file is too long, or not a JSON object.
    """
    try:
        fields = json.loads(read_bounded(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} must contain a JSON object, got {type(fields).__name__}")
    return fields
