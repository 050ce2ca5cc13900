"""JSON that every parser reads, and reading it without trust."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from entropy_probe.errors import InputError
from entropy_probe.interruption import held_back

MOST_BYTES = 64 * 2**20
"""A file that is longer is not read: a law of a large model takes a hundredth of it."""

T = TypeVar("T")


def to_strict_json(value: Any) -> str:
    """A value as indented JSON text, ending in a new line; what is not a finite number is written as null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def read_bounded(path: Path) -> str:
    """The text of a JSON file from elsewhere; of one that is too long no more than `MOST_BYTES` are read.

    Raises:
        InputError: if it cannot be read, is too long or no text.
    """
    content = bytearray()
    try:
        with path.open("rb") as file:
            while (chunk := file.read(2**20)) and len(content) <= MOST_BYTES:  # a read of them all would take them all
                content += chunk
        if len(content) <= MOST_BYTES:
            return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    raise InputError(f"{path} is longer than {MOST_BYTES >> 20} MiB")


def from_strict_json(kind: type[T], text: str) -> T:
    """JSON text as an instance of a dataclass or other type, with no field that it does not name.

    Raises:
        InputError: for text that is too long, no JSON, or of another type, naming the field.
    """
    if len(text) > MOST_BYTES:
        raise InputError(f"it is longer than {MOST_BYTES >> 20} MiB")
    try:
        with held_back():  # pydantic takes an interruption for a value of another type
            return TypeAdapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise InputError(f"it lacks {where[:200]!r}") from error
        if first["type"] == "json_invalid":
            raise InputError(f"it is no JSON: {first['ctx']['error']}") from error
        raise InputError(f"{first['msg']}{where and f' in {where[:200]!r}'}") from error


def nan_for_null(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as they were before `to_strict_json`, where every null stands for a number that is not known."""
    return {name: math.nan if value is None else value for name, value in fields.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
