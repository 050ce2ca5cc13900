"""All scaling laws by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

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


def factors(
    law: ScalingLaw, ratios: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0), *, training_tokens: int = 1024
) -> pd.DataFrame:
    """Return the factors of a law as a table with the columns `layer`, `ratio` (N/T) and `scale_factor` (g).

    Args:
        law: a scaling law or a derivation. If it treats all layers alike, the table has one layer, `*`.
        ratios: values of N/T.
        training_tokens: T. The factors of `paper` and `log` depend on it.

    >>> factors(Kappa({"*": 0.5}), [1.0, 4.0]).round(4)
      layer  ratio  scale_factor
    0     *    1.0        1.0000
    1     *    4.0        1.3012
    """
    law = own_law(law)
    numbers = [value for value in vars(law).values() if isinstance(value, dict) and value]
    names: Iterable[str] = law.layers if isinstance(law, Constant) else numbers[0] if numbers else ("*",)
    return pd.DataFrame(
        [
            (name, ratio, law.scale_factor(name, max(1, round(ratio * training_tokens)), training_tokens))
            for name in names
            for ratio in ratios
        ],
        columns=["layer", "ratio", "scale_factor"],
    )


def own_law(law: ScalingLaw) -> ScalingLaw:
    """Return the law of a derivation, or the law itself."""
    inner = getattr(law, "law", None)
    return inner if isinstance(inner, ScalingLaw) else law
