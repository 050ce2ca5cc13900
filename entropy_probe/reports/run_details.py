"""The tables and the settings of a report."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from entropy_probe.escape import for_html
from entropy_probe.models import format_size
from entropy_probe.plots.tables import (
    drift_table,
    entropy_table,
    error_by_rows,
    factors_by_size,
    fit_table,
    quality_table,
    rival_table,
    rounds_table,
)
from entropy_probe.reports.results import RunResults

COMPARED_IMAGES = "Images under each law compared with the original, in pairs, with 95 % intervals"
"""Title of the table of image metrics."""


def run_tables(results: RunResults) -> dict[str, pd.DataFrame]:
    """Return the tables of a run by title. Empty tables are left out."""
    tables = {}
    if results.fit:
        tables["Fit H = a + b ln N of every layer"] = fit_table(results.fit)
        tables["Forms of H(N): error in nats at a size left out of the fit"] = rival_table(results.fit)
    tables["Mean entropy ± standard error over the prompts, nats; original model"] = entropy_table(results.frame)
    if results.factors is not None:
        tables["Scale factor of every layer, with 95 % intervals"] = factors_by_size(results.factors)
    if results.derivation and results.derivation.rounds:
        tables["Rounds of refinement"] = rounds_table(results.derivation)
    if results.outcome:
        tables["Drift, with 95 % intervals"] = drift_table(results.outcome)
    if results.quality:
        tables[COMPARED_IMAGES] = quality_table(results.quality)
    return {title: table for title, table in tables.items() if len(table)}


def run_settings(results: RunResults) -> dict[str, Any]:
    """Return the settings of a run, for programs."""
    manifest, grid = results.sweep.manifest, results.sampled.grid
    return {
        "command": results.command,
        "model": manifest.model,
        "pipeline": manifest.pipeline,
        "fingerprint": manifest.fingerprint,
        "training_size": manifest.training_size,
        "sizes": grid.sizes,
        "laws": [law.name for law in grid.laws],
        "prompts": grid.prompts,
        "seeds": grid.seeds,
        "steps": manifest.steps,
        "guidance_scale": manifest.guidance_scale,
        "rows": manifest.rows,
        "dtype": manifest.dtype,
        "versions": manifest.versions,
        "hardware": manifest.hardware,
        "confounders": manifest.confounders,
    }


def run_facts(results: RunResults) -> dict[str, str]:
    """Return the settings of a run as text for the page."""
    known = run_settings(results)
    others = "; ".join(for_html(f"{name} {value}") for name, value in known["confounders"].items())
    model, pipeline, weights = (for_html(known[name]) for name in ("model", "pipeline", "fingerprint"))
    return {
        "command": known["command"] or "called from Python",
        "model": f"{model} ({pipeline}, weights {weights})",
        "training size": f"{format_size(known['training_size'])} pixels",
        "sizes": ", ".join(map(format_size, known["sizes"])) + " pixels (height x width)",
        "laws": ", ".join(known["laws"]),
        "prompts": "; ".join(map(for_html, known["prompts"])),
        "seeds": ", ".join(map(str, known["seeds"])),
        "steps": str(known["steps"]),
        "guidance scale": str(known["guidance_scale"]),
        "attention rows": f"{known['rows']}{row_sampling_error(results.frame)}",
        "dtype": for_html(known["dtype"]),
        "versions": ", ".join(for_html(f"{name} {number}") for name, number in known["versions"].items()),
        "hardware": for_html(known["hardware"]),
        **({"also changes with the size": others} if others else {}),
    }


def row_sampling_error(frame: pd.DataFrame) -> str:
    """Return a text on the standard error due to sampling only some query rows; empty if all rows were measured."""
    if not frame["entropy_se"].any():
        return ""
    error = math.ceil(1e4 * error_by_rows(frame)) / 1e4  # rounded up
    return f" (sampling of rows adds a standard error of at most {error:g} nats to the mean of a layer)"


def missing_parts(results: RunResults) -> str:
    """Return a sentence on the parts of the pipeline that were not run; empty if there are none."""
    missing = []
    if results.fit is None:
        missing.append("the fit of H(N), which needs two sizes with different token counts")
    if results.law is None and results.derivation is None:
        missing.append("a derived scaling law (entropy-probe derive)")
    if results.outcome is None:
        missing.append("images under scaling laws (entropy-probe validate)")
    elif results.quality is None:
        missing.append("image metrics (entropy-probe validate --metrics)")
    if not results.entropy_maps:
        missing.append("entropy maps")
    return f"Not in this report: {'; '.join(missing)}." if missing else ""
