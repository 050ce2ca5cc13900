"""Read and write scaling laws as JSON.

A file contains the name of the law under `law`, the fields of its class, and the model that it belongs to under
`origin`. A derived law may also contain the record of its derivation, which only `estimation.Derivation.from_json`
reads. docs/law-file.md describes the format.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from entropy_probe.errors import InputError
from entropy_probe.laws.catalogue import LAWS, own_law
from entropy_probe.laws.origin import Origin, origin_of
from entropy_probe.laws.site import ScalingLaw
from entropy_probe.strict_json import from_strict_json, read_bounded, to_strict_json

LAW_FORMAT = 2
"""Version of the file. Version 1, of entropy-probe 0.1.0, has neither `format` nor `origin` nor `interpolation`."""

INTERPOLATION = "log-log"
"""How g is computed from `points`: ln g is linear in ln(N/T), through (0, 1), and the outer segments are extended."""


def _file_model(name: str, law: type[Any]) -> type[BaseModel]:
    """Return the pydantic model of a law file."""
    types = get_type_hints(law, include_extras=True)
    fields: dict[str, Any] = {field.name: (types[field.name], _default(field)) for field in dataclasses.fields(law)}
    fields |= {"law": (Literal[name], ...), "format": (int, 1), "derivation": (Any, None)}
    fields["origin"] = (Origin | None, None)
    if "points" in fields:
        fields["interpolation"] = (Literal[INTERPOLATION], INTERPOLATION)
    return create_model(f"{law.__name__}File", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _default(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a dataclass field for pydantic."""
    if field.default_factory is not dataclasses.MISSING:
        return Field(default_factory=field.default_factory)
    return ... if field.default is dataclasses.MISSING else field.default


_FILES = {name: _file_model(name, law) for name, law in LAWS.items()}
_LawFile: Any = Annotated[Union[tuple(_FILES.values())], Field(discriminator="law")]  # noqa: UP007
"""The model of every law file: the field `law` selects the member."""


def to_json(law: ScalingLaw, *, origin: Origin | None = None) -> str:
    """Return a law as JSON text. `from_json` reads it back to an equal law.

    Args:
        law: a law of this package, or a derivation, whose law is written.
        origin: the model that the law belongs to. A derived law has its own.

    Raises:
        InputError: for a law of another class. Its formula cannot be written to a file.

    >>> from entropy_probe.laws import Paper
    >>> to_json(Paper()).split()
    ['{', '"format":', '2,', '"law":', '"paper"', '}']
    """
    origin = origin or origin_of(law)
    fields: dict[str, Any] = {"format": LAW_FORMAT, **parameters(law)}
    if "points" in fields:
        fields["interpolation"] = INTERPOLATION
    if origin is not None:
        fields["origin"] = dataclasses.asdict(origin)
    return to_strict_json(fields)


def parameters(law: ScalingLaw) -> dict[str, Any]:
    """Return the name and the numbers of a law: what determines its factors.

    Raises:
        InputError: for a law of another class. Its formula cannot be written to a file.

    >>> from entropy_probe.laws import Kappa
    >>> parameters(Kappa({"*": 0.2}))
    {'law': 'kappa', 'kappa': {'*': 0.2}, 'floor': 0.1}
    """
    law = own_law(law)
    name = next((name for name, kind in LAWS.items() if kind is type(law)), None)
    if name is None:
        raise InputError(
            f"only the laws {', '.join(LAWS)} can be written as JSON, got {law.name!r} of class "
            f"{type(law).__name__}: apply it with apply() or scaled(), or write its factors as points of a Measured law"
        )
    fields: dict[str, Any] = {"law": name, **dataclasses.asdict(law)}  # type: ignore[call-overload]
    fields.pop("origin", None)
    return fields


def from_json(text: str) -> ScalingLaw:
    """Return the law that `to_json` wrote.

    Raises:
        InputError: if the text is not a law, has a newer format or an unknown field, or contains an invalid number.

    >>> from_json('{"law": "paper"}')
    Paper()
    >>> from_json('{"law": "kappa", "kappa": {"*": "0.1"}}')
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: this is not a valid scaling law: 'kappa.*' must be a valid number, got '0.1'
    """
    _check_format(text)
    try:
        file = from_strict_json(_LawFile, text, tagged=True)
    except InputError as error:
        raise InputError(f"this is not a valid scaling law: {error}") from error
    kind = LAWS[file.law]
    law: ScalingLaw = kind(**{field.name: getattr(file, field.name) for field in dataclasses.fields(kind)})
    return law


def _check_format(text: str) -> None:
    """Refuse newer formats. Their other fields are unknown, so the format is read first."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return
    written = fields.get("format", 1) if isinstance(fields, dict) else 1
    if isinstance(written, int) and written not in (1, LAW_FORMAT):
        raise InputError(
            f"this is not a valid scaling law: 'format' must be 1 or {LAW_FORMAT}, got {written!r:.40}: install the "
            "version of entropy-probe that wrote it"
        )


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
