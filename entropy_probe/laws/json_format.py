"""Read and write scaling laws as JSON.

A file contains the name of the law under `law`, and the fields of its class. A derived law may also contain the record
of its derivation, which only `estimation.Derivation.from_json` reads.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from entropy_probe.errors import InputError
from entropy_probe.laws.formulas import LAWS, ScalingLaw, own_law
from entropy_probe.strict_json import from_strict_json, read_bounded, to_strict_json


def _file_model(name: str, law: type[Any]) -> type[BaseModel]:
    """Return the pydantic model of a law file: `law`, the fields of the class, and the record of a derivation."""
    types = get_type_hints(law, include_extras=True)
    fields: dict[str, Any] = {field.name: (types[field.name], _default(field)) for field in dataclasses.fields(law)}
    fields |= {"law": (Literal[name], ...), "derivation": (Any, None)}
    return create_model(f"{law.__name__}File", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _default(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a dataclass field for pydantic."""
    if field.default_factory is not dataclasses.MISSING:
        return Field(default_factory=field.default_factory)
    return ... if field.default is dataclasses.MISSING else field.default


_FILES = {name: _file_model(name, law) for name, law in LAWS.items()}
_LawFile: Any = Annotated[Union[tuple(_FILES.values())], Field(discriminator="law")]  # noqa: UP007
"""The model of every law file: the field `law` selects the member."""


def to_json(law: ScalingLaw) -> str:
    """Return a law as JSON text. `from_json` reads it back to an equal law.

    Args:
        law: a law of this package, or a derivation, whose law is written.

    Raises:
        InputError: for a law of another class. Its formula cannot be written to a file.

    >>> from entropy_probe.laws import Paper
    >>> to_json(Paper()).split()
    ['{', '"law":', '"paper"', '}']
    """
    law = own_law(law)
    name = next((name for name, kind in LAWS.items() if kind is type(law)), None)
    if name is None:
        raise InputError(
            f"only the laws {', '.join(LAWS)} can be written as JSON, got {law.name!r} of class "
            f"{type(law).__name__}: apply it with apply() or scaled(), or write its factors as points of a Measured law"
        )
    return to_strict_json({"law": name, **dataclasses.asdict(law)})  # type: ignore[call-overload]


def from_json(text: str) -> ScalingLaw:
    """Return the law that `to_json` wrote.

    Raises:
        InputError: if the text is not a law, has an unknown field, or contains an invalid number.

    >>> from_json('{"law": "paper"}')
    Paper()
    >>> from_json('{"law": "kappa", "kappa": {"*": "0.1"}}')
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: this is not a valid scaling law: 'kappa.*' must be a valid number, got '0.1'
    """
    try:
        file = from_strict_json(_LawFile, text, tagged=True)
    except InputError as error:
        raise InputError(f"this is not a valid scaling law: {error}") from error
    kind = LAWS[file.law]
    law: ScalingLaw = kind(**{field.name: getattr(file, field.name) for field in dataclasses.fields(kind)})
    return law


def save_law(law: ScalingLaw, path: str | Path) -> None:
    """Write a law to a JSON file. An existing file is overwritten.

    Raises:
        InputError: if the law has no JSON format, or the file cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> from entropy_probe.laws import Kappa
    >>> with TemporaryDirectory() as folder:
    ...     save_law(Kappa({"*": 0.2}), f"{folder}/law.json")
    ...     load_law(f"{folder}/law.json")
    Kappa(kappa={'*': 0.2}, floor=0.1)
    """
    text = to_json(law)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def load_law(path: str | Path) -> ScalingLaw:
    """Return the law in a JSON file.

    Raises:
        InputError: if the file cannot be read or does not contain a law.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "law.json"
    ...     _ = path.write_text('{"law": "paper"}')
    ...     load_law(path)
    Paper()
    """
    text = read_bounded(Path(path))
    try:
        return from_json(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
