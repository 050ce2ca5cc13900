"""All scaling laws by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from entropy_probe.errors import InputError
from entropy_probe.laws.formulas import Calibrated, Constant, Gaussian, Kappa, Log, Measured, Original, Paper
from entropy_probe.laws.measured_parts import MeasuredHeads, MeasuredSteps
from entropy_probe.laws.published import HeadEntropy, LogPower, Pippo, TimeYarn, Yarn
from entropy_probe.laws.site import ScalingLaw

LAWS: dict[str, type[Any]] = {
    "original": Original,
    "paper": Paper,
    "log": Log,
    "log_power": LogPower,
    "pippo": Pippo,
    "yarn": Yarn,
    "time_yarn": TimeYarn,
    "head_entropy": HeadEntropy,
    "gaussian": Gaussian,
    "measured": Measured,
    "measured_head": MeasuredHeads,
    "measured_step": MeasuredSteps,
    "calibrated": Calibrated,
    "constant": Constant,
    "kappa": Kappa,
}
"""The class of every law by the field `law` of its file."""

_FORMULAS = (Original(), Paper(), Log(), Yarn(), Yarn("side"), TimeYarn())

NEEDS_NOTHING = tuple(law.name for law in _FORMULAS)
"""The names of the laws that need no numbers."""

_WITH_NUMBER: dict[str, Callable[[float], ScalingLaw]] = {
    "log_power": LogPower,
    "pippo": Pippo,
    "kappa": lambda value: Kappa({"*": value}),
}

WITH_NUMBER = tuple(_WITH_NUMBER)
"""The laws that are named with their number, such as `log_power=2`."""

DERIVED = (Measured.name, Gaussian.name, Calibrated.name)
"""The laws with numbers that `derive` computes from a sweep."""


def law_by_name(name: str) -> ScalingLaw | None:
    """Return the law with a name such as `paper` or `log_power=2`; None if there is none, or if it needs a file.

    >>> law_by_name("log_power=2")
    LogPower(power=2.0)
    >>> law_by_name("measured")  # None: its numbers are in a file
    """
    kind, equals, number = name.partition("=")
    if equals and kind in _WITH_NUMBER:
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (value <= 0 and kind != "kappa"):
            raise InputError(f"law {name!r:.100} needs a positive number after '=', such as {kind}=1.5")
        return _WITH_NUMBER[kind](value)
    return next((law for law in _FORMULAS if law.name == name), None)


def own_law(law: ScalingLaw) -> ScalingLaw:
    """Return the law of a derivation, or the law itself."""
    inner = getattr(law, "law", None)
    return inner if isinstance(inner, ScalingLaw) else law
