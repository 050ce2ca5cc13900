"""Write JSON that every parser accepts, and read JSON files that are not trusted."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import PydanticSerializationError, to_json

from entropy_probe.errors import InputError
from entropy_probe.interruption import delay_interrupt

MAX_BYTES = 64 * 2**20
"""Maximum size of a file that is read. The law of a large model takes about 1 % of it."""

FORBID_UNKNOWN_FIELDS = ConfigDict(extra="forbid")
"""The `__pydantic_config__` of every dataclass that `from_strict_json` returns or that is a field of one."""

T = TypeVar("T")

MAX_NUMBER = 1e30
"""Largest number in a file. It is far above every result, and its powers and sums do not overflow."""


def _nan_for_null(value: Any, validate: Any) -> float:
    return math.nan if value is None else float(validate(value))


Finite = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
"""A number of a file that is never unknown."""

Number = Annotated[Finite, WrapValidator(_nan_for_null)]
"""A number of a file. `to_strict_json` writes NaN as null, so null is NaN."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A count of a file. JSON parsers in other languages read larger integers inexactly."""

Side = Annotated[int, Field(ge=1, le=2**20)]
"""The height or width of an image in a file, pixels."""


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
        content = to_json(value, indent=2, inf_nan_mode="null", fallback=_python_scalar)
    except PydanticSerializationError as error:
        raise InputError(f"cannot write this as JSON: {error}") from error
    # Only texts have other characters. `ensure_ascii` of to_json needs pydantic 2.12.
    return re.sub(r"[^\x00-\x7f]", lambda match: json.dumps(match[0])[1:-1], content.decode()) + "\n"


def read_bounded(path: Path, limit: int | None = None) -> str:
    """Return the text of a file. Reading stops after the limit, because the file may come from anybody.

    Args:
        path: a regular file. Reading a pipe would wait for its writer.
        limit: maximum number of bytes. By default, `MAX_BYTES`.

    Raises:
        InputError: if the file cannot be read, is too long, or is not UTF-8 text.
    """
    limit = MAX_BYTES if limit is None else limit
    content = bytearray()
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            while (chunk := file.read(2**20)) and len(content) <= limit:
                content += chunk
        if len(content) <= limit:
            return content.decode("utf-8")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is not UTF-8 text at byte {error.start}") from error
    except ValueError as error:  # the name contains NUL
        raise InputError(f"cannot read {path}: {error}") from error
    raise InputError(f"{path} is longer than {limit >> 20} MiB")


def from_strict_json(kind: type[T], text: str, *, tagged: bool = False) -> T:
    """Parse JSON text into a dataclass or another type. Unknown fields and implicit conversions are errors.

    Args:
        kind: the type to return. Its dataclasses need `FORBID_UNKNOWN_FIELDS`.
        text: JSON text.
        tagged: True if `kind` is a union with a discriminator. Errors then name the field without its union member.

    Raises:
        InputError: if the text is too long, not JSON, or does not match the type. The message names the field and its
            value.

    >>> from_strict_json(list[int], "[1, 2]")
    [1, 2]
    >>> from_strict_json(dict[str, int], '{"steps": "8"}')
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: 'steps' must be a valid integer, got '8'
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"the text is longer than {MAX_BYTES >> 20} MiB")
    try:
        with delay_interrupt():  # pydantic would report a KeyboardInterrupt as a value of the wrong type
            return cast(T, _adapter(cast(Any, kind)).validate_json(text, strict=True))
    except ValidationError as error:
        raise InputError(_reason(error, tagged)) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _reason(error: ValidationError, tagged: bool) -> str:
    """Return the first problem in one line: the field, what it must be, and its value."""
    first = error.errors(include_url=False)[0]
    path = first["loc"][1:] if tagged else first["loc"]
    field = repr(".".join(map(str, path))[:200]) if path else "the file"
    value = repr(first["input"])[:100]
    match first["type"]:
        case "missing":
            return f"the field {field} is missing"
        case "json_invalid":
            return f"invalid JSON: {first['ctx']['error']}"
        case "value_error":  # a check of the type itself, whose message is complete
            return str(first["ctx"]["error"])
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"unknown field {field}: remove it"
        case "union_tag_not_found":
            return f"the field {first['ctx']['discriminator']} is missing"
        case "union_tag_invalid":
            tag = first["ctx"]["discriminator"]
            got = repr(first["input"][tag.strip("'")])[:100]
            return f"{tag} must be one of {first['ctx']['expected_tags']}, got {got}"
    return f"{field} {re.sub(r'^[A-Z][a-z]+ should', 'must', first['msg'])}, got {value}"


def _python_scalar(value: Any) -> Any:
    """Convert a NumPy scalar: pydantic knows only Python types."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"unsupported type {type(value).__name__}")
