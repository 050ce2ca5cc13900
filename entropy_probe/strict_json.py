"""JSON that every parser reads: what is not a finite number is written as null."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np


def to_strict_json(value: Any) -> str:
    """A value as indented JSON text, ending in a new line."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


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
