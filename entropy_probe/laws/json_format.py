"""Scaling laws as JSON text and files, and as names."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropy_probe.errors import InputError
from entropy_probe.laws.formulas import DERIVED, LAWS, NEEDS_NOTHING, ScalingLaw
from entropy_probe.strict_json import from_strict_json, nan_for_null, read_bounded, to_strict_json


def to_json(law: ScalingLaw) -> str:
    """Return a law as JSON text. `from_json` reads it back to an equal law.

    >>> from entropy_probe.laws import Paper
    >>> to_json(Paper()).split()
    ['{', '"law":', '"paper"', '}']
    """
    law = getattr(law, "law", law)  # a Derivation holds its law
    name = next((name for name, kind in LAWS.items() if kind is type(law)), law.name)
    return to_strict_json({"law": name, **dataclasses.asdict(law)})  # type: ignore[arg-type]


def from_json(text: str) -> ScalingLaw:
    """Return the law that `to_json` wrote.

    Raises:
        InputError: if the text is not a law, has an unknown field, or contains an invalid number.

    >>> from_json('{"law": "paper"}')
    Paper()
    """
    try:
        fields = from_strict_json(dict[str, Any], text)
        fields.pop("derivation", None)  # a derived law may be stored with the record of its derivation
        if "law" not in fields:
            raise InputError("the field 'law' is missing")
        name = str(fields.pop("law"))
        if name not in LAWS:
            raise InputError(f"there is no law {name[:100]!r}: 'law' must be one of {', '.join(LAWS)}")
        for table in ("kappa", "kappa_se"):
            if "points" in fields and isinstance(values := fields.get(table, {}), dict):
                fields[table] = nan_for_null(values)
        law: ScalingLaw = from_strict_json(LAWS[name], json.dumps(fields))
    except InputError as error:
        raise InputError(f"this is not a scaling law in entropy-probe's format: {error}") from error
    return law


def save_law(law: ScalingLaw, path: str | Path) -> None:
    """Write a law to a JSON file. An existing file is overwritten.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        Path(path).write_text(to_json(law), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def load_law(path: str | Path) -> ScalingLaw:
    """Return the law in a JSON file.

    Raises:
        InputError: if the file cannot be read or does not contain a law.
    """
    text = read_bounded(Path(path))
    try:
        return from_json(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class _RenamedMethod:
    """A user law that still has the method `multiplier` of version 0.1.0."""

    def __init__(self, law: Any) -> None:
        self._law = law
        self.name: str = law.name

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        """Return the g of the user's law."""
        return float(self._law.multiplier(layer, tokens, training_tokens))


def resolve(law: ScalingLaw | str | Path, *, besides: Sequence[str] = ()) -> ScalingLaw:
    """Return a law, given the law itself, its name, or its JSON file.

    Args:
        law: the law.
        besides: further names that the caller accepts, to be listed in error messages.

    Raises:
        InputError: for an unknown name, a law that must be derived first, a file that does not exist or does not
            contain a law, or any other type.

    >>> resolve("paper")
    Paper()
    """
    if isinstance(law, ScalingLaw):
        return getattr(law, "law", law)  # a Derivation holds its law
    if not isinstance(law, str | Path) and hasattr(law, "multiplier") and hasattr(law, "name"):
        warnings.warn(
            f"{type(law).__name__}.multiplier() is deprecated: rename it to scale_factor()",
            DeprecationWarning,
            stacklevel=2,
        )
        return _RenamedMethod(law)
    if not isinstance(law, str | Path):
        raise InputError(
            f"a law must be a name, a JSON file or an object with name and scale_factor(), got {law!r:.100}"
        )
    if str(law) in NEEDS_NOTHING:
        named: ScalingLaw = LAWS[str(law)]()
        return named
    if str(law) in DERIVED:
        raise InputError(
            f"law {str(law)!r} is measured on a model: derive it first (entropy-probe derive --method {law}) and pass "
            "its JSON file"
        )
    if str(law) in LAWS:
        raise InputError(f"law {str(law)!r} needs numbers: pass the JSON file that contains them")
    path = Path(law)
    if not path.is_file():
        is_path = isinstance(law, Path) or path.suffix or len(path.parts) > 1
        cause = f"there is no file {str(law)!r}" if is_path else f"unknown law {str(law)!r}"
        raise InputError(f"{cause}: give {', '.join([*NEEDS_NOTHING, *besides])}, or the JSON file of a derived law")
    return load_law(path)
