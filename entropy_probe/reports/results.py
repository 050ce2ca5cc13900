"""The results of a run: what a report shows, without the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar

import pandas as pd
from pydantic import AfterValidator, ConfigDict

from entropy_probe.errors import InputError
from entropy_probe.estimation import Calibration, Derivation, Fit
from entropy_probe.evaluation import Outcome, Quality
from entropy_probe.laws import ScalingLaw
from entropy_probe.models import format_size, parse_size
from entropy_probe.plots.tables import factors_with_intervals
from entropy_probe.runs import Sweep
from entropy_probe.runs.entropy_maps import EntropyMap
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Finite, Number, from_strict_json

LOSSES = {"g": "loss-g.json", "kappa": "loss-kappa.json"}
"""Files of a run directory with the denoising loss as a function of these numbers."""


@dataclass(frozen=True)
class _Change:
    """What the rows of both tables of losses have in common."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    size: Annotated[str, AfterValidator(lambda text: format_size(parse_size(text)))]
    change: Finite
    low: Number
    high: Number


@dataclass(frozen=True)
class _ByFactor(_Change):
    g: Finite


@dataclass(frozen=True)
class _ByKappa(_Change):
    kappa: Finite


_ROWS = {"g": _ByFactor, "kappa": _ByKappa}


@dataclass(frozen=True)
class RunResults:
    """The results of a run.

    Attributes:
        sweep: the sampled grid of the original model.
        fit: the fitted entropy law; None if the sweep has fewer than two token counts.
        law: the derived scaling law, if any.
        outcome: the effect of the laws, if they were sampled.
        derivation: how the law was derived, if it is known.
        entropy_maps: see `runs.entropy_maps.entropy_maps`.
        losses: tables of `LossCurve`, by the name of the number: `g` or `kappa`.
        calibration: the calibrated law and its effect on the loss, if there is one.
        command: the command line that made the report, if any.
    """

    sweep: Sweep
    fit: Fit | None = None
    law: ScalingLaw | None = None
    outcome: Outcome | None = None
    derivation: Derivation | None = None
    entropy_maps: tuple[EntropyMap, ...] = ()
    losses: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    calibration: Calibration | None = None
    command: str | None = None

    @property
    def sampled(self) -> Sweep:
        """The sweep over all laws that were sampled."""
        return self.outcome.sweep if self.outcome else self.sweep

    @property
    def quality(self) -> Quality | None:
        """The image metrics, if the images were scored."""
        return self.outcome.quality if self.outcome else None

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The measurements under all laws that were sampled."""
        return self.sampled.frame()

    @cached_property
    def factors(self) -> pd.DataFrame | None:
        """The scale factors of the law; see `plots.tables.factors_with_intervals`. None without a law."""
        return factors_with_intervals(self.law, self.frame, self.derivation) if self.law else None


def read_losses(made: Sweep) -> dict[str, pd.DataFrame]:
    """Read the tables of `LossCurve` from a run directory, by the name of the number.

    Raises:
        InputError: if a file is not a table of losses.
    """
    return {
        name: _loss_table(made.run.read_text(file), name)
        for name, file in LOSSES.items()
        if (made.run.path / file).exists()
    }


def _loss_table(text: str, name: str) -> pd.DataFrame:
    """Parse a table of `LossCurve` from JSON records."""
    try:
        kind: Any = _ROWS[name]
        rows = from_strict_json(list[kind], text)
        if not rows:
            raise InputError("it is empty")
    except InputError as error:
        raise InputError(
            f"{LOSSES[name]} is not a table of denoising losses: {error}; delete the file, and run entropy-probe loss "
            "again"
        ) from error
    table = pd.DataFrame([vars(row) for row in rows])
    return table.astype(dict.fromkeys((name, "change", "low", "high"), float))
