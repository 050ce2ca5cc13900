"""Write JSON that every parser accepts, and read JSON files that are not trusted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from entropy_probe.errors import InputError
from entropy_probe.interruption import delay_interrupt

MAX_BYTES = 64 * 2**20
"""Maximum size of a file that is read. The law of a large model takes about 1 % of it."""

T = TypeVar("T")


def to_strict_json(value: Any) -> str:
    r"""Return a value as indented ASCII JSON with a final newline. NaN and infinity become null.

    Args:
        value: dictionaries, lists, tuples, dataclasses, texts, and Python or NumPy scalars.

    Raises:
        InputError: if a text is not valid Unicode.

    >>> to_strict_json({"slope": 0.9, "slope_se": float("nan")})
    '{\n  "slope": 0.9,\n  "slope_se": null\n}\n'
    """
    try:
        content = to_json(value, indent=2, inf_nan_mode="null", ensure_ascii=True, fallback=_python_scalar)
    except PydanticSerializationError as error:
        raise InputError(f"cannot write this as JSON: {error}") from error
    return content.decode() + "\n"


def read_bounded(path: Path) -> str:
    """Return the text of a file. Reading stops after `MAX_BYTES`, because the file may come from anybody.

    Raises:
        InputError: if the file cannot be read, is too long, or is not UTF-8 text.
    """
    content = bytearray()
    try:
        with path.open("rb") as file:
            while (chunk := file.read(2**20)) and len(content) <= MAX_BYTES:
                content += chunk
        if len(content) <= MAX_BYTES:
            return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    raise InputError(f"{path} is longer than {MAX_BYTES >> 20} MiB")


def from_strict_json(kind: type[T], text: str) -> T:
    """Parse JSON text into a dataclass or another type. Unknown fields and implicit conversions are errors.

    Raises:
        InputError: if the text is too long, not JSON, or does not match the type. The message names the field.

    >>> from_strict_json(list[int], "[1, 2]")
    [1, 2]
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"the text is longer than {MAX_BYTES >> 20} MiB")
    try:
        with delay_interrupt():  # pydantic would report a KeyboardInterrupt as a value of the wrong type
            return TypeAdapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))[:200]
        if first["type"] == "missing":
            raise InputError(f"the field {field!r} is missing") from error
        if first["type"] == "json_invalid":
            raise InputError(f"invalid JSON: {first['ctx']['error']}") from error
        raise InputError(f"{first['msg']}{field and f' in {field!r}'}") from error


def nan_for_null(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace None by NaN in numeric fields: the inverse of how `to_strict_json` writes NaN.

    >>> nan_for_null({"slope": 0.9, "slope_se": None})
    {'slope': 0.9, 'slope_se': nan}
    """
    return {name: math.nan if value is None else value for name, value in fields.items()}


def _python_scalar(value: Any) -> Any:
    """Convert a NumPy scalar: pydantic knows only Python types."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"unsupported type {type(value).__name__}")
