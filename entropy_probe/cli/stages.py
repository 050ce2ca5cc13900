"""Run one stage on a sampled run, save its result in the run directory, and print it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from entropy_probe.cli.loading import LAW_FILES, load_images, load_laws
from entropy_probe.cli.output import Messages, factor_rows, make_table

if TYPE_CHECKING:
    from entropy_probe.estimation import Derivation, Fit, Round
    from entropy_probe.evaluation import Outcome, Scorer
    from entropy_probe.runs import Sweep


def fit_and_save(sampled: Sweep) -> Fit:
    """Fit H = a + b ln N per layer, and write fit.json."""
    from entropy_probe.estimation import fit

    fitted = fit(sampled)
    sampled.run.write("fit.json", fitted.to_json())
    return fitted


def derive_measured_and_save(sampled: Sweep, rounds: int, messages: Messages) -> tuple[Derivation, Path]:
    """Derive the measured law, print each round of its refinement, and write law.json."""
    from entropy_probe.estimation import derive

    def report_round(result: Round) -> None:
        error = "" if math.isnan(result.drift_se) else f" +- {result.drift_se:.3f}"
        messages.print(f"round {result.number}: remaining drift {result.drift:.3f}{error} nats")

    derivation = derive(sampled, rounds=rounds, progress=messages.progress, on_round=report_round)
    return derivation, sampled.run.write(LAW_FILES["measured"], derivation.to_json())


def derive_measured(sampled: Sweep, rounds: int, as_json: bool, messages: Messages) -> None:
    """Derive the measured law and print it."""
    derivation, path = derive_measured_and_save(sampled, rounds, messages)
    if as_json:
        sys.stdout.write(path.read_text())
    messages.print(make_table(factor_rows(derivation)))
    messages.print(f"law: {path}")


def derive_gaussian(sampled: Sweep, as_json: bool, messages: Messages) -> None:
    """Derive the Gaussian law and print it."""
    from entropy_probe.estimation import derive
    from entropy_probe.laws import Gaussian, to_json
    from entropy_probe.models import short_name

    law = derive(sampled, "gaussian").law
    assert isinstance(law, Gaussian)
    path = sampled.run.write(LAW_FILES["gaussian"], to_json(law))
    if as_json:
        sys.stdout.write(path.read_text())
    rows = [{"layer": short_name(name), "logit variance": value} for name, value in law.logit_variance.items()]
    messages.print(make_table(rows))
    messages.print(f"law: {path}")


def derive_calibrated(sampled: Sweep, images: Path | None, as_json: bool, messages: Messages) -> None:
    """Derive the calibrated law and print the change of the denoising loss."""
    from entropy_probe.estimation import calibrate
    from entropy_probe.laws import to_json

    real_images = load_images(sampled, images)
    calibration = calibrate(sampled.pipeline, real_images, sampled.grid.sizes, progress=messages.progress)
    path = sampled.run.write(LAW_FILES["calibrated"], to_json(calibration.law))
    if as_json:
        sys.stdout.write(path.read_text())
    rows = [{**row, "change": f"{row['change']:+.2%}"} for row in calibration.table().to_dict("records")]
    messages.print(make_table(rows))
    messages.print(f"law: {path}")


def validate_and_save(sampled: Sweep, laws: str, scorer: Scorer | None, messages: Messages) -> tuple[Outcome, Path]:
    """Sample the grid under each law, measure drift and image quality, and write outcome.json."""
    from entropy_probe.evaluation import validate

    outcome = validate(sampled, load_laws(sampled, laws), scorer=scorer, progress=messages.progress)
    return outcome, sampled.run.write("outcome.json", outcome.to_json())
