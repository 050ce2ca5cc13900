"""`compare`: several runs side by side, such as models, versions of one, or settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from entropy_probe.attention import visual
from entropy_probe.errors import InputError
from entropy_probe.escape import for_terminal
from entropy_probe.estimation import POOLED, Fit, LogLaw
from entropy_probe.models import format_size, short_name
from entropy_probe.plots import comparison as compare_figures
from entropy_probe.plots.tables import between, drift_table, number, quality_table, span, with_error
from entropy_probe.reports import page
from entropy_probe.reports.page import Shown
from entropy_probe.reports.run_report import Report
from entropy_probe.runs import Manifest, open_location, write_atomically
from entropy_probe.strict_json import to_strict_json

COMPARABLE = ("steps", "guidance_scale", "rows", "dtype", "training_size")
"""Settings of the manifest whose differences a reader must know of."""


@dataclass(frozen=True)
class RunComparison:
    """Several runs, by name; the first is what the others are compared with.

    Attributes:
        runs: two or more, each of which has a fit.
        command: the command line, if there was one.
    """

    runs: dict[str, Report]
    command: str | None = None

    def verdict(self) -> list[str]:
        """What the runs have in common and in what they differ, in sentences with their numbers."""
        first, *others = self.runs
        pooled = {name: fit.pooled for name, fit in self._fits.items()}
        sentences = [
            f"Entropy grows by {_slope(pooled[first])} nats for every e-fold of tokens in {first}"
            + "".join(f", {_slope(pooled[name])} in {name}" for name in others)
            + "."
        ]
        sentences += [_difference(first, pooled[first], name, pooled[name]) for name in others]
        shared = set.intersection(*(set(own["layer"]) for _, own in self.slopes().groupby("run")))
        count = self.slopes()["layer"].nunique()
        sentences.append(
            f"{len(shared)} of {count} layers bear the same name in all runs and are matched by it."
            if shared
            else "No layer bears the same name in all runs: only their means are matched."
        )
        for name, run in self.runs.items():
            if run.kappa is not None:
                sentences.append(
                    f"Keeping the entropy of {name} asks for a median kappa of {run.kappa['kappa'].median():.2f} "
                    f"({span(run.kappa['kappa'])}); the paper's is {span(run.kappa['paper'])}."
                )
        sentences += [
            f"{name}: {line}" for name, run in self.runs.items() if run.outcome for line in run.outcome.verdict()
        ]
        return sentences

    def slopes(self) -> pd.DataFrame:
        """`run`, `layer`, `value` (slope b of H = a + b ln N), `low`, `high`, `se`; the pooled slope comes last."""
        rows = [
            {"run": name, "layer": law.layer, "value": law.slope, "low": law.slope_low, "high": law.slope_high,
             "se": law.slope_se}
            for name, fit in self._fits.items()
            for law in fit.layers[:-1]
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def kappas(self) -> pd.DataFrame:
        """`run`, `layer`, `value` (kappa), `low`, `high`, `se`, of the runs that derived a law; empty without any."""
        parts = [
            run.kappa.assign(run=name).rename(columns={"kappa": "value", "kappa_se": "se"})
            for name, run in self.runs.items()
            if run.kappa is not None
        ]
        columns = ["run", "layer", "value", "low", "high", "se"]
        return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)

    def drifts(self) -> pd.DataFrame:
        """`run`, `law`, `size`, `ratio` (pixels over those in training), `drift`, `low`, `high`: mean over layers."""
        rows = [
            {"run": name, "law": one.law, "size": format_size(one.size), "ratio": _ratio(one.size, run.sweep.manifest),
             "drift": one.drift, "low": one.low, "high": one.high}
            for name, run in self.runs.items()
            for one in (run.outcome.drifts if run.outcome else ())
            if one.level == "layer"
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def html(self) -> str:
        """The page: self-contained, no outside request."""
        return page.render(
            page.Content(
                title="Attention entropy of " + ", ".join(self.runs),
                verdict=self.verdict(),
                shown=list(self._shown()),
                tables=self._tables(),
                facts=self._facts(),
                remark=self._remark(),
            )
        )

    def _repr_html_(self) -> str:
        return page.frame(self.html())

    def save(self, path: str | Path) -> Path:
        """Write the page.

        Raises:
            InputError: if the folder cannot be written.
        """
        target = open_location(path)
        write_atomically(target, self.html().encode())
        return target

    def to_json(self) -> str:
        """Verdict and numbers, for programs; what is not known is null."""
        tables = {"slopes": self.slopes(), "kappas": self.kappas(), "drifts": self.drifts()}
        pooled = [{"run": name, **vars(fit.pooled)} for name, fit in self._fits.items()]
        numbers: dict[str, Any] = {name: table.to_dict("records") for name, table in tables.items()}
        return to_strict_json({"verdict": self.verdict(), "pooled": pooled, **numbers})

    @cached_property
    def _fits(self) -> dict[str, Fit]:
        fits = {}
        for name, run in self.runs.items():
            if run.fit is None:
                raise InputError(f"{name} has one token count only: sample it at two sizes or more to compare it")
            fits[name] = run.fit
        return fits

    def _shown(self) -> Iterator[Shown]:
        yield Shown(
            "How entropy grows with the tokens",
            "Left: the mean over layers, prompts and seeds of the original model, with 95 % intervals over prompts. "
            "Right: the same from the size that each run's model was trained at.",
            partial(compare_figures.growth, pd.concat([_growth(n, r) for n, r in self.runs.items()])),
        )
        yield Shown(
            "How entropy grows with the tokens",
            "The slope b of H = a + b ln N of every layer, 95 % intervals; layers of one name stand on one line, the "
            "dotted line is the slope of logits whose variance does not change with N.",
            partial(compare_figures.by_layer, _short(self.slopes()), "b, nats for every e-fold of tokens", 1.0),
        )
        sampling = pd.concat([_sampling(n, r) for n, r in self.runs.items()])
        if len(sampling):
            yield Shown(
                "Entropy over the sampling",
                "Mean over the layers at the training size of each model, original law; bands are 95 % intervals over "
                "prompts.",
                partial(compare_figures.over_the_sampling, sampling),
            )
        if len(self.kappas()):
            yield Shown(
                "The scaling factor",
                "Kappa of every layer in g² = 1 + κ ln(N/T), the factor that keeps its entropy, 95 % intervals; at 0 "
                "the layer is left alone.",
                partial(compare_figures.by_layer, _short(self.kappas()), "κ in g² = 1 + κ ln(N/T)", 0.0),
            )
        if len(self.drifts()):
            yield Shown(
                "Drift",
                "How far the mean entropy of a layer is from that at the training size under each law, with 95 % "
                "intervals: the nearer to 0, the better.",
                partial(compare_figures.drift, self.drifts()),
            )

    def _tables(self) -> dict[str, pd.DataFrame]:
        tables = {
            "The law H = a + b ln N of all layers together": pd.DataFrame(
                [_pooled_row(name, fit) for name, fit in self._fits.items()]
            ),
            "Slope b of every layer": _wide(self.slopes()),
        }
        if len(self.kappas()):
            tables["Kappa of every layer"] = _wide(self.kappas())
        outcomes = {name: run.outcome for name, run in self.runs.items() if run.outcome}
        if outcomes:
            tables["Drift, with 95 % intervals"] = _stacked({n: drift_table(one) for n, one in outcomes.items()})
        judged = {name: quality_table(one.quality) for name, one in outcomes.items() if one.quality}
        if judged:
            tables["Images under each law against the original, in pairs, with 95 % intervals"] = _stacked(judged)
        return tables

    def _facts(self) -> dict[str, str]:
        facts = {"command": self.command or "called from Python"}
        for name, run in self.runs.items():
            known = run.facts()
            kept = ("model", "training size", "sizes", "laws", "seeds", "steps", "guidance scale", "dtype", "versions")
            facts[name] = f"{len(run.sweep.grid.prompts)} prompts; " + "; ".join(f"{key} {known[key]}" for key in kept)
        return facts

    def _remark(self) -> str:
        """In what the runs differ besides the model."""
        differing = []
        for field in COMPARABLE:
            values = [getattr(run.sweep.manifest, field) for run in self.runs.values()]
            if len(set(values)) > 1:
                differing.append(f"{field.replace('_', ' ')} ({', '.join(map(_setting, values))})")
        for field in ("sizes", "prompts", "seeds"):
            grids = [set(getattr(run.sweep.grid, field)) for run in self.runs.values()]
            if any(grid != grids[0] for grid in grids):
                differing.append(field)
        return (
            f"The runs also differ in {', '.join(differing)}: what the page shows is due to these too."
            if differing
            else ""
        )


def compare(runs: Sequence[str | Path], *, command: str | None = None) -> RunComparison:
    """Put run directories side by side; nothing is sampled and no model is loaded.

    Args:
        runs: two or more run directories, folders or URLs; the first is what the others are compared with.
        command: the command line to quote.

    Raises:
        InputError: for fewer than two, one named twice, a folder that is no finished run, or a run of one token count.
    """
    if len(runs) < 2:
        raise InputError("comparing takes two runs at least: name another run directory")
    paths = [open_location(run) for run in runs]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a run is named twice: compare different run directories")
    named = [path.resolve().name for path in paths]
    names = named if len(set(named)) == len(named) else [str(path) for path in paths]
    made = RunComparison({for_terminal(n): Report.open(p) for n, p in zip(names, paths, strict=True)}, command)
    assert made._fits
    return made


def _slope(law: LogLaw) -> str:
    interval = between(law.slope_low, law.slope_high)
    return f"{law.slope:.3f}" + ("" if math.isnan(law.slope_low) else f" ({interval})")


def _difference(first: str, a: LogLaw, name: str, b: LogLaw) -> str:
    """Of two slopes, as if their prompts had been drawn apart: Student's t with the fewer prompts."""
    change = b.slope - a.slope
    if math.isnan(a.slope_se) or math.isnan(b.slope_se):
        return f"The slope of {name} less that of {first} is {change:+.3f}; one prompt tells no interval."
    reach = float(stats.t.ppf(0.975, min(a.prompts, b.prompts) - 1)) * math.hypot(a.slope_se, b.slope_se)
    found = "they differ" if abs(change) > reach else "no difference is shown"
    return (
        f"The slope of {name} less that of {first} is {change:+.3f} (95 % interval {change - reach:+.3f} to "
        f"{change + reach:+.3f}): {found}."
    )


def _ratio(size: tuple[int, int], manifest: Manifest) -> float:
    height, width = manifest.training_size
    return size[0] * size[1] / (height * width)


def _growth(name: str, run: Report) -> pd.DataFrame:
    """Mean entropy of every size and its drift, with standard errors over the prompts."""
    assert run.fit is not None
    points = run.fit.points.assign(ln=np.log(run.fit.points["tokens"]))
    by_prompt = points.groupby(["height", "width", "prompt"])[["ln", "entropy"]].mean().reset_index()
    height, width = run.sweep.manifest.training_size
    trained = by_prompt[(by_prompt["height"] == height) & (by_prompt["width"] == width)]
    by_prompt["drift"] = by_prompt["entropy"] - by_prompt["prompt"].map(trained.set_index("prompt")["entropy"])
    sizes = by_prompt.groupby(["height", "width"])[["ln", "entropy", "drift"]]
    table = sizes.mean().join(sizes.sem()[["entropy", "drift"]].add_suffix("_se")).reset_index()
    ratio = [_ratio(size, run.sweep.manifest) for size in zip(table["height"], table["width"], strict=True)]
    return table.rename(columns={"ln": "tokens"}).assign(run=name, ratio=ratio)


def _sampling(name: str, run: Report) -> pd.DataFrame:
    """Mean entropy over the layers at the training size by timestep; empty where that was not sampled."""
    height, width = run.sweep.manifest.training_size
    frame = run.frame[(run.frame["height"] == height) & (run.frame["width"] == width)]
    frame = visual(frame[frame["law"] == "original"])
    by_layer = frame.groupby(["timestep", "prompt", "layer"])["entropy"].mean()
    by_prompt = by_layer.groupby(["timestep", "prompt"]).mean().groupby("timestep")
    table = pd.DataFrame({"entropy": by_prompt.mean(), "entropy_se": by_prompt.sem()}).reset_index()
    return table.assign(run=name)


def _short(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(layer=table["layer"].map(short_name))


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row per layer, a column per run."""
    texts = [with_error(value, error) for value, error in zip(table["value"], table["se"], strict=True)]
    wide = _short(table).assign(text=texts).pivot(index="layer", columns="run", values="text")
    order = dict.fromkeys(_short(table)["layer"])
    return (
        wide.reindex(index=order, columns=dict.fromkeys(table["run"]))
        .fillna("–")
        .rename_axis(columns=None, index="layer")
        .reset_index()
    )


def _stacked(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    parts = []
    for name, table in tables.items():
        table.insert(0, "run", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _pooled_row(name: str, fit: Fit) -> dict[str, str]:
    law = fit.pooled
    ranked = fit.rivals[fit.rivals["layer"] == POOLED].dropna().sort_values("error")
    best = f"{ranked.iloc[0]['form']} ({number(ranked.iloc[0]['error'])} nats)" if len(ranked) > 1 else "–"
    return {
        "run": name,
        "slope b": with_error(law.slope, law.slope_se),
        "95 % interval": between(law.slope_low, law.slope_high),
        "mean intercept a, nats": number(law.intercept),
        "R²": f"{law.r_squared:.4f}",
        "layers": str(len(fit.layers) - 1),
        "prompts": str(law.prompts),
        "best form, error on a size left out": best,
    }


def _setting(value: object) -> str:
    return format_size((value[0], value[1])) if isinstance(value, tuple) else str(value)
