"""Compare several runs on one page: models, versions of a model, or settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from entropy_probe import plots
from entropy_probe.errors import InputError
from entropy_probe.escape import one_line
from entropy_probe.estimation import Fit, LogLaw
from entropy_probe.evaluation.differences import LEVEL, POWER
from entropy_probe.evaluation.quality_summary import MAX_NEEDED
from entropy_probe.laws import factors as law_factors
from entropy_probe.models import format_size
from entropy_probe.plots import Panel
from entropy_probe.plots.numbers import INTERVAL, UNKNOWN, between, fixed, number
from entropy_probe.plots.tables import drift_table, quality_table
from entropy_probe.reports import page
from entropy_probe.reports.comparison_tables import (
    by_layer,
    growth_curve,
    pooled_row,
    size_ratio,
    stacked,
    with_short_names,
)
from entropy_probe.reports.gallery import gallery_of_runs
from entropy_probe.reports.noise_levels import at_equal_levels, sampling_curve
from entropy_probe.reports.page import Shown
from entropy_probe.reports.run_details import COMPARED_IMAGES
from entropy_probe.reports.run_report import Report
from entropy_probe.reports.saved_files import PAGE_MARK, SavedFile, write_files
from entropy_probe.reports.sentences import rise_with_interval
from entropy_probe.reports.summary import OVERVIEW_NOTE, PAPER, TERMS, overview
from entropy_probe.runs import open_location
from entropy_probe.strict_json import to_strict_json

RISE = "entropy rise per doubling of N"
"""Title of the columns with the slope of the entropy."""

COMPARABLE = ("steps", "guidance_scale", "rows", "dtype", "training_size")
"""Settings in the manifest that the page names if they differ."""


@dataclass(frozen=True)
class RunComparison:
    """Several runs by name. The others are compared with the first.

    Attributes:
        runs: two or more reports with a fit.
        command: the command line that made the comparison, if any.
    """

    runs: dict[str, Report]
    command: str | None = None

    def verdict(self) -> list[str]:
        """Return the common points and the differences of the runs as sentences with their numbers."""
        first, *others = self.runs
        pooled = {name: fit.pooled for name, fit in self._fits.items()}
        rises = "; ".join(f"{name} {rise_with_interval(law)}" for name, law in pooled.items())
        sentences = [f"Rise of the attention entropy when the token count doubles: {rises}."]
        sentences += [_difference(first, pooled[first], name, pooled[name]) for name in others]
        shared = set.intersection(*(set(own["layer"]) for _, own in self.slopes().groupby("run")))
        count = self.slopes()["layer"].nunique()
        sentences.append(
            f"{len(shared)} of {count} layers have the same name in all runs, and are compared by name."
            if shared
            else "No layer has the same name in all runs, so only the means over the layers can be compared."
        )
        return sentences

    def overview(self) -> pd.DataFrame:
        """Return a row for each run, size and law: the rise of the entropy, and the effect of the law.

        The columns have two levels.
        """
        first = [("", "run"), ("", "size, px"), ("", "law")]
        rows = []
        for name, run in self.runs.items():
            law = self._fits[name].pooled
            rise = {
                ("", "run"): name,
                (RISE, "nats"): fixed(law.slope * math.log(2), 2),
                (RISE, INTERVAL): between(law.slope_low * math.log(2), law.slope_high * math.log(2), 2),
            }
            rows += [rise | row for row in overview(run).to_dict("records") or [{}]]
        columns = dict.fromkeys([*first, *(column for row in rows for column in row)])
        return pd.DataFrame({column: [row.get(column, UNKNOWN) for row in rows] for column in columns})

    def slopes(self) -> pd.DataFrame:
        """Return the slope b of H = a + b ln N of every layer: `run`, `layer`, `value`, `low`, `high`, `se`."""
        rows = [
            {"run": name, "layer": law.layer, "value": law.slope, "low": law.slope_low, "high": law.slope_high,
             "se": law.slope_se}
            for name, fit in self._fits.items()
            for law in fit.layers[:-1]
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def factors(self) -> pd.DataFrame:
        """Return g of every layer at N/T = 4: `run`, `layer`, `value`, `low`, `high`, `se` (all NaN), `bound`.

        Runs without a derived law are left out, so the table can be empty.
        """
        parts = [
            law_factors(run.derivation or run.law, [4.0]).rename(columns={"scale_factor": "value"}).assign(run=name)
            for name, run in self.runs.items()
            if run.law
        ]
        columns = ["run", "layer", "value", "low", "high", "se", "bound"]
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
        return table.reindex(columns=columns).astype({"low": float, "high": float, "se": float})

    def drifts(self) -> pd.DataFrame:
        """Return the drift of the layers under every law: `run`, `law`, `size`, `ratio`, `drift`, `low`, `high`.

        `ratio` is the number of pixels relative to the training size.
        """
        rows = [
            {"run": name, "law": one.law, "size": format_size(one.size),
             "ratio": size_ratio(one.size, run.sweep.manifest), "drift": one.drift, "low": one.low, "high": one.high}
            for name, run in self.runs.items()
            for one in (run.outcome.drifts if run.outcome else ())
            if one.level == "layer"
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def noise_levels(self) -> pd.DataFrame:
        """Return the mean entropy at each step: `run`, `noise_level` (1 is noise), `entropy`, `entropy_half_width`.

        It is the mean over the layers at the training size, without a law, in nats.
        """
        parts = [
            sampling_curve(run.frame, run.sweep.manifest.training_size).assign(run=name)
            for name, run in self.runs.items()
        ]
        return pd.concat(parts, ignore_index=True)[["run", "noise_level", "entropy", "entropy_half_width"]]

    def html(self) -> str:
        """Return the page. It is self-contained and makes no requests."""
        return page.render(
            page.Content(
                title="Attention entropy of " + ", ".join(self.runs),
                notice=self._notice(),
                summary=self._summary(),
                overview=self.overview(),
                overview_note=OVERVIEW_NOTE,
                gallery=gallery_of_runs(self.runs),
                terms=TERMS,
                citation=PAPER,
                verdict=self.verdict(),
                shown=list(self._shown()),
                tables=self._tables(),
                facts=self._facts(),
            )
        )

    def _repr_html_(self) -> str:
        return page.frame(self.html())

    def save(self, path: str | Path) -> Path:
        """Write the page. A page of this package that is there is replaced; another file is not.

        Raises:
            InputError: if the folder cannot be written, or the path is a file of somebody else.
        """
        target = open_location(path)
        write_files({target: SavedFile(self.html().encode(), PAGE_MARK)})
        return target

    def to_json(self) -> str:
        """Return the verdict and all numbers as JSON text. Unknown values are null."""
        tables = {
            "slopes": self.slopes(),
            "factors": self.factors(),
            "drifts": self.drifts(),
            "noise_levels": self.noise_levels(),
        }
        pooled = [{"run": name, **vars(fit.pooled)} for name, fit in self._fits.items()]
        numbers: dict[str, Any] = {name: table.to_dict("records") for name, table in tables.items()}
        return to_strict_json({"verdict": self.verdict(), "pooled": pooled, **numbers})

    @cached_property
    def _fits(self) -> dict[str, Fit]:
        fits = {}
        for name, run in self.runs.items():
            if run.fit is None:
                raise InputError(f"{name} has one token count, and a comparison needs two: sample it at another size")
            fits[name] = run.fit
        return fits

    def _shown(self) -> Iterator[Shown]:
        growth = pd.concat([growth_curve(n, r) for n, r in self.runs.items()])
        yield Shown(
            "Entropy against the number of tokens",
            "Mean over layers, prompts and seeds, without a law, with 95 % intervals over the prompts.",
            Panel("entropy", partial(plots.draw_growth, curves=growth)),
        )
        yield Shown(
            "Entropy against the number of tokens",
            "Change of the mean entropy from the training size of each run, which has no change, with 95 % intervals.",
            Panel("growth", partial(plots.draw_growth, curves=growth, change=True)),
        )
        yield Shown(
            "Entropy against the number of tokens",
            "Slope b of H = a + b ln N of every layer, with 95 % intervals. Layers with the same name share a line. "
            "The dotted line is the slope for logits whose variance does not depend on N.",
            partial(plots.layers_of_runs, with_short_names(self.slopes()), "b, nats per unit of ln N", 1.0),
        )
        sampling = self.noise_levels()
        if len(sampling):
            yield Shown(
                "Entropy during sampling",
                "Mean entropy of the layers without a law, at the training size of each model, against the noise "
                "level. Runs with other schedulers or step counts can be compared. A point is a step. Bands are 95 % "
                "intervals over the prompts. Flow models define the noise level in another way: compare models of one "
                "kind.",
                partial(plots.noise_levels_of_runs, sampling),
            )
        if len(self.factors()):
            yield Shown(
                "The scale factor",
                "Scale factor g of every layer at four times the tokens of training. 1 does not change the layer.",
                partial(plots.layers_of_runs, with_short_names(self.factors()), "g at N/T = 4", 1.0),
            )
        if len(self.drifts()):
            yield Shown(
                "Drift",
                "Difference of the mean entropy of a layer from its value at the training size, under each law, root "
                "mean square over the layers, with 95 % intervals; lower is better.",
                partial(plots.drift_of_runs, self.drifts()),
            )

    def _tables(self) -> dict[str, pd.DataFrame]:
        tables = {
            "Fit H = a + b ln N of all layers together": pd.DataFrame(
                [pooled_row(name, fit) for name, fit in self._fits.items()]
            ),
            "Slope b of every layer": by_layer(self.slopes()),
        }
        equal = at_equal_levels(dict(iter(self.noise_levels().groupby("run", sort=False))))
        if len(equal) and len(equal.columns) > 2:
            named = equal.rename(columns={"noise_level": "noise level"})
            tables["Entropy at equal noise levels, nats"] = named.map(number)
        if len(self.factors()):
            tables["Scale factor of every layer at N/T = 4"] = by_layer(self.factors())
        outcomes = {name: run.outcome for name, run in self.runs.items() if run.outcome}
        if outcomes:
            tables["Drift, with 95 % intervals"] = stacked({n: drift_table(one) for n, one in outcomes.items()})
        scored = {name: quality_table(one.quality) for name, one in outcomes.items() if one.quality}
        if scored:
            tables[COMPARED_IMAGES] = stacked(scored)
        return tables

    def _facts(self) -> dict[str, str]:
        facts = {"command": self.command or "called from Python"}
        for name, run in self.runs.items():
            known = run.facts()
            kept = ("model", "training size", "sizes", "laws", "seeds", "steps", "guidance scale", "dtype", "versions")
            facts[name] = f"{len(run.sweep.grid.prompts)} prompts; " + "; ".join(f"{key} {known[key]}" for key in kept)
        return facts

    def _summary(self) -> dict[str, str]:
        """Return short texts by title: what is compared, and whether the entropy grows differently."""
        first, *others = self.runs
        pooled = {name: fit.pooled for name, fit in self._fits.items()}
        rises = "; ".join(f"{name} {rise_with_interval(law)}" for name, law in pooled.items())
        return {
            "Compared": f"{len(self.runs)} runs: {', '.join(others)} with {first}. Rise of the attention entropy when "
            f"the token count doubles: {rises}.",
            "Do they differ?": " ".join(_difference(first, pooled[first], name, pooled[name]) for name in others),
        }

    def _notice(self) -> str:
        """Return a sentence on the settings that differ between the runs; empty if there are none."""
        differing = []
        for field in ("sizes", "prompts", "seeds"):
            grids = [getattr(run.sweep.grid, field) for run in self.runs.values()]
            if any(set(grid) != set(grids[0]) for grid in grids):
                shared = set(grids[0]).intersection(*grids)
                differing.append(f"{field} ({len(shared)} of {len(set().union(*grids))} shared)")
        for field in COMPARABLE:
            values = [getattr(run.sweep.manifest, field) for run in self.runs.values()]
            if len(set(values)) > 1:
                differing.append(f"{field.replace('_', ' ')} ({', '.join(map(_setting, values))})")
        return (
            f"The runs also differ in {', '.join(differing)}. These settings can cause the differences on this page."
            if differing
            else ""
        )


def compare(runs: Sequence[str | Path], *, command: str | None = None) -> RunComparison:
    """Compare run directories. Nothing is sampled and no model is loaded.

    Args:
        runs: two or more run directories, folders or URLs. The others are compared with the first.
        command: the command line to show.

    Raises:
        InputError: if there are fewer than two runs, a run is given twice, a folder is not a finished run, or a run has
            a single token count.

    Examples:
        >>> compare(["run-a"])
        Traceback (most recent call last):
        entropy_probe.errors.InputError: a comparison needs at least two runs, got 1: add a run directory
    """
    if len(runs) < 2:
        raise InputError(f"a comparison needs at least two runs, got {len(runs)}: add a run directory")
    paths = [open_location(run) for run in runs]
    try:
        resolved = [path.resolve() for path in paths]
    except (OSError, ValueError) as error:  # a name is too long, or contains NUL
        raise InputError(f"cannot read {str(runs)[:300]}: {error}") from error
    if len(set(resolved)) < len(paths):
        raise InputError("a run is given twice: compare different run directories")
    named = [path.name for path in resolved]
    names = named if len(set(named)) == len(named) else [str(path) for path in paths]
    made = RunComparison({one_line(n): Report.open(p) for n, p in zip(names, paths, strict=True)}, command)
    assert made._fits
    return made


def _difference(first: str, a: LogLaw, name: str, b: LogLaw) -> str:
    """Compare two slopes as if their prompts were independent: Student's t with the smaller number of prompts."""
    change = b.slope - a.slope
    start = f"Slope b of {name} minus slope b of {first}: {change:+.3f}"
    if math.isnan(a.slope_se) or math.isnan(b.slope_se):
        return f"{start}. A run with one prompt has no interval, so differences cannot be detected."
    prompts, error = min(a.prompts, b.prompts), math.hypot(a.slope_se, b.slope_se)
    reach = float(stats.t.ppf(0.975, prompts - 1)) * error
    interval = f"{start} (95 % interval {change - reach:+.3f} to {change + reach:+.3f})"
    if abs(change) > reach:
        return f"{interval}. The slopes differ."
    needed = _needed(prompts, error, change)
    about = f" (about {needed:,} needed to detect a difference of this size)" if needed is not None else ""
    return f"{interval}. No difference detected; {prompts} prompts may be too few{about}."


def _needed(prompts: int, error: float, change: float) -> int | None:
    """Estimate the number of prompts per run that would detect a difference with 80 % power; None above `MAX_NEEDED`.

    The standard error of a difference falls with the square root of the number of prompts.
    """
    z = stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER)
    needed = prompts * (z * error / change) ** 2 if change else math.inf
    return math.ceil(needed) if needed <= MAX_NEEDED else None


def _setting(value: object) -> str:
    return format_size((value[0], value[1])) if isinstance(value, tuple) else str(value)
