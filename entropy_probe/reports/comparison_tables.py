"""The tables and the curves of a comparison of runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_probe.estimation import POOLED, Fit
from entropy_probe.estimation.intervals import half_width
from entropy_probe.models import Size, short_name
from entropy_probe.plots.numbers import INTERVAL, UNKNOWN, between, number
from entropy_probe.reports.results import RunResults
from entropy_probe.runs import Manifest


def size_ratio(size: Size, manifest: Manifest) -> float:
    """Return the number of pixels relative to the training size."""
    height, width = manifest.training_size
    return size[0] * size[1] / (height * width)


def growth_curve(name: str, run: RunResults) -> pd.DataFrame:
    """Return the mean entropy of every size and its drift, with 95 % intervals over the prompts."""
    assert run.fit is not None
    points = run.fit.points.assign(ln=np.log(run.fit.points["tokens"]))
    by_prompt = points.groupby(["height", "width", "prompt"])[["ln", "entropy"]].mean().reset_index()
    height, width = run.sweep.manifest.training_size
    trained = by_prompt[(by_prompt["height"] == height) & (by_prompt["width"] == width)]
    by_prompt["drift"] = by_prompt["entropy"] - by_prompt["prompt"].map(trained.set_index("prompt")["entropy"])
    sizes = by_prompt.groupby(["height", "width"])
    ends = {f"{name}_half_width": half_width(sizes[name]) for name in ("entropy", "drift")}
    table = sizes[["ln", "entropy", "drift"]].mean().assign(**ends).reset_index()
    ratio = [size_ratio(size, run.sweep.manifest) for size in zip(table["height"], table["width"], strict=True)]
    return table.rename(columns={"ln": "ln_tokens"}).assign(run=name, ratio=ratio)


def with_short_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with shortened names of layers."""
    return table.assign(layer=table["layer"].map(short_name))


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Return values with their standard errors: a row per layer, and two columns per run."""
    table = with_short_names(table)
    layers = dict.fromkeys(table["layer"])
    columns = {("", "layer"): list(layers)}
    for run, own in table.groupby("run", sort=False):
        rows = {row["layer"]: row for row in own.to_dict("records")}
        values = {layer: f"{row.get('bound', '')} {number(row['value'])}".strip() for layer, row in rows.items()}
        columns[str(run), "value"] = [values.get(layer, UNKNOWN) for layer in layers]
        if own["se"].notna().any():
            columns[str(run), "error"] = [number(rows[layer]["se"]) if layer in rows else UNKNOWN for layer in layers]
    return pd.DataFrame(columns)


def stacked(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the tables of all runs as one, with the run as the first column."""
    parts = []
    for name, table in tables.items():
        table.insert(0, "run", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def pooled_row(name: str, fit: Fit) -> dict[str, str]:
    """Return a row of the table of pooled fits."""
    law = fit.pooled
    ranked = fit.rivals[fit.rivals["layer"] == POOLED].dropna().sort_values("error")
    best = ranked.iloc[0] if len(ranked) > 1 else None
    return {
        "run": name,
        "slope b": number(law.slope),
        INTERVAL: between(law.slope_low, law.slope_high),
        "mean intercept a, nats": number(law.intercept),
        "R²": f"{law.r_squared:.4f}",
        "layers": str(len(fit.layers) - 1),
        "prompts": str(law.prompts),
        "best form": UNKNOWN if best is None else str(best["form"]),
        "its error on a size left out, nats": UNKNOWN if best is None else number(best["error"]),
    }
