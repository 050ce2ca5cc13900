"""Run one stage on a sampled run, save its result in the run directory, and print it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_probe.cli.loading import law_file, load_laws
from entropy_probe.cli.output import Messages

if TYPE_CHECKING:
    from entropy_probe.estimation import Derivation, Fit, Round
    from entropy_probe.evaluation import Outcome, Scorer
    from entropy_probe.models import CaptionedImages
    from entropy_probe.runs import Sweep


def fit_and_save(sampled: Sweep) -> Fit:
    """Fit H = a + b ln N per layer, and write fit.json."""
    from entropy_probe.estimation import fit

    fitted = fit(sampled)
    sampled.run.write("fit.json", fitted.to_json())
    return fitted


def derive_and_save(
    sampled: Sweep,
    method: Any,
    rounds: int,
    images: CaptionedImages | None,
    messages: Messages,
    level: Any = "layer",
) -> tuple[Derivation, Path]:
    """Derive a law by any method of `estimation.derive`, print each round of its refinement, and write its file."""
    from entropy_probe.estimation import derive

    def report_round(result: Round) -> None:
        error = "" if math.isnan(result.drift_se) else f" +- {result.drift_se:.3f}"
        messages.print(f"round {result.number}: remaining drift {result.drift:.3f}{error} nats")

    derivation = derive(
        sampled,
        method,
        rounds=rounds,
        level=level,
        images=images,
        progress=messages.stage("derive"),
        on_round=report_round,
    )
    return derivation, sampled.run.write(law_file(method, level), derivation.to_json())


def validate_and_save(sampled: Sweep, laws: str, scorer: Scorer | None, messages: Messages) -> tuple[Outcome, Path]:
    """Sample the grid under each law, measure drift and image quality, and write outcome.json."""
    from entropy_probe.evaluation import validate

    resolved = load_laws(sampled, laws)
    if scorer:
        _print_power(sampled, [law.name for law in resolved], scorer, messages)
    outcome = validate(sampled, resolved, scorer=scorer, progress=messages.stage("validate"))
    return outcome, sampled.run.write("outcome.json", outcome.to_json())


def _print_power(sampled: Sweep, laws: list[str], scorer: Scorer, messages: Messages) -> None:
    """Print, before the images are sampled, how small a difference of an image metric they can show."""
    from entropy_probe.evaluation.differences import detectable_difference
    from entropy_probe.evaluation.image_quality import planned_comparisons

    grid, trained = sampled.grid, sampled.manifest.training_size
    others = len(set(laws) - {"original"}), len(set(grid.sizes) - {trained})
    comparisons, pairs = planned_comparisons(*others, scorer), len(grid.prompts) * len(grid.seeds)
    if comparisons:
        messages.print(
            f"{pairs} pairs of images and {comparisons} comparisons per run: a difference of "
            f"{detectable_difference(pairs, comparisons):.2f} standard deviations is detected with a power of 80 %"
        )
