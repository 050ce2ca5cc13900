"""Build tables: rounded for people, and at full precision for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from entropy_probe.attention import Captured, visual
from entropy_probe.estimation import Derivation, Fit
from entropy_probe.evaluation import Outcome, Quality, metric_and_network
from entropy_probe.evaluation.quality_summary import MAX_NEEDED
from entropy_probe.laws import Paper, ScalingLaw, factor_bound, factors, format_factor
from entropy_probe.models import format_size, short_name

UNKNOWN = "–"
"""Shown if a number needs more than one prompt, or more than one size."""


def metric_label(metric: str) -> str:
    """Return the label of a metric: its title, its direction and, with several networks, the network.

    Examples:
        >>> metric_label("kernel_distance:critic")
        'kernel distance by critic (lower is better)'
    """
    declared, network = metric_and_network(metric)
    return declared.label(network)


def captured_table(captured: Captured) -> pd.DataFrame:
    """Return the mean entropy of every layer (nats), with its standard error over the images."""
    table = captured.summary()
    rows = [
        {
            "layer": short_name(row["layer"]),
            "kind": row["kind"],
            "entropy, nats": with_error(row["entropy"], row["entropy_se"]),
            "images": row["images"],
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)


def factor_table(law: ScalingLaw) -> pd.DataFrame:
    """Return g of every layer of a law, at several N/T.

    Examples:
        >>> from entropy_probe.laws import Constant
        >>> factor_table(Constant(1.5)).iloc[0, :2].tolist()
        ['every layer', '1.500']
    """
    table = factors(law)
    texts = [f"{bound} {number(g)}".strip() for g, bound in zip(table["scale_factor"], table["bound"], strict=True)]
    wide = table.assign(text=texts).pivot(index="layer", columns="ratio", values="text")
    wide = wide.reindex(dict.fromkeys(table["layer"]))
    wide.index = wide.index.map(lambda name: "every layer" if name == "*" else short_name(name))
    return wide.rename(columns="N/T = {:g}".format).rename_axis(columns=None).reset_index()


def fit_table(fit: Fit) -> pd.DataFrame:
    """Return the fitted law H = a + b ln N, a row per layer."""
    rows = [
        {
            "layer": short_name(law.layer),
            "slope b": with_error(law.slope, law.slope_se),
            "95 % interval": between(law.slope_low, law.slope_high),
            "slope at N < T": number(law.slope_below),
            "slope at N > T": number(law.slope_above),
            "intercept a, nats": with_error(law.intercept, law.intercept_se),
            "R²": f"{law.r_squared:.4f}",
        }
        for law in fit.layers
    ]
    return pd.DataFrame(rows)


def rival_table(fit: Fit) -> pd.DataFrame:
    """Return the error of every form of H(N) (nats), and the name of the best form, a row per layer."""
    rows = []
    for law in fit.layers:
        own = fit.rivals[fit.rivals["layer"] == law.layer].sort_values("error")
        errors = dict(zip(own["form"], own["error"], strict=True))
        shown = {form: number(errors[form]) for form in ("log", "power", "linear", "gaussian")}
        known = own["error"].notna().sum() > 1
        rows.append({"layer": short_name(law.layer), **shown, "best": str(own.iloc[0]["form"]) if known else UNKNOWN})
    return pd.DataFrame(rows)


def entropy_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean entropy of the original model (nats), with its standard error: rows are layers, columns sizes."""
    table = summary(visual(frame[frame["law"] == "original"]))
    table["entropy, nats"] = [with_error(h, se) for h, se in zip(table["entropy"], table["entropy_se"], strict=True)]
    table["pixels"] = [format_size((int(h), int(w))) for h, w in zip(table["height"], table["width"], strict=True)]
    order = table.assign(area=table["height"] * table["width"]).sort_values("area")["pixels"].drop_duplicates()
    wide = table.pivot(index="layer", columns="pixels", values="entropy, nats")
    wide = wide.reindex(index=table["layer"].drop_duplicates(), columns=order).fillna(UNKNOWN)
    wide.index = wide.index.map(short_name)
    return wide.rename(columns=lambda size: f"at {size}").rename_axis(index="layer", columns=None).reset_index()


def error_by_rows(frame: pd.DataFrame) -> float:
    """Compute the largest standard error (nats) of a layer's mean that is due to sampling only some query rows.

    The steps of an image sample their rows independently. The heads share their rows, so the mean of their errors is an
    upper bound.
    """
    image = ["law", "height", "width", "prompt", "seed", "branch", "layer"]
    steps = frame.groupby([*image, "step"], sort=False)["entropy_se"].mean()
    by_image = steps.pow(2).groupby(level=image, sort=False)
    return float((by_image.sum().pow(0.5) / by_image.size()).max())


def factors_with_intervals(law: ScalingLaw, frame: pd.DataFrame, derivation: Derivation | None) -> pd.DataFrame:
    """Return g of each layer at each size of a run except the training size, next to the paper's g.

    Args:
        law: the law.
        frame: the measurements, for the layers and their token counts.
        derivation: the derivation of the law, for the intervals.

    Returns:
        The columns of `factors_at_sizes`, `low`, `high` (95 % interval, NaN if unknown), `bound` (`at most`,
        `at least`, or empty) and `paper` (g of the paper's law).
    """
    table = factors_at_sizes(law, frame).assign(paper=factors_at_sizes(Paper(), frame)["scale_factor"])
    table = table[table["ratio"] != 1]
    keys = ["layer", "tokens", "training_tokens"]
    known = derivation.factors if derivation else pd.DataFrame(columns=[*keys, "low", "high"])
    table = table.merge(known[[*keys, "low", "high"]], on=keys, how="left").astype({"low": float, "high": float})
    table["bound"] = [factor_bound(derivation or law, *key) for key in table[keys].itertuples(index=False)]
    table.loc[table["bound"] != "", ["low", "high"]] = math.nan
    return table


def factors_by_size(table: pd.DataFrame) -> pd.DataFrame:
    """Return g of each layer with its interval as text: a row per layer, and a column per size.

    Args:
        table: see `factors_with_intervals`.
    """
    texts = [
        format_factor(row.scale_factor, row.bound)
        if row.bound
        else with_interval(row.scale_factor, row.low, row.high, ".2f")
        for row in table.itertuples()
    ]
    shown = table.assign(
        layer=table["layer"].map(short_name), text=texts, column="g at " + table["size"].astype(str) + " px"
    )
    wide = shown.pivot(index="layer", columns="column", values="text")
    wide = wide.reindex(index=dict.fromkeys(shown["layer"]), columns=dict.fromkeys(shown["column"]))
    return wide.fillna(UNKNOWN).rename_axis(columns=None).reset_index()


def rounds_table(derivation: Derivation) -> pd.DataFrame:
    """Return the drift that remained after each round of refinement. Round 0 is the original model."""
    rows = [{"round": r.number, "drift, nats": with_error(r.drift, r.drift_se)} for r in derivation.rounds]
    return pd.DataFrame(rows)


def drift_table(outcome: Outcome) -> pd.DataFrame:
    """Return the drift under every law at every size, at the three levels."""
    rows = [
        {
            "level": drift.level,
            "law": drift.law,
            "size, pixels": format_size(drift.size),
            "drift, nats": with_interval(drift.drift, drift.low, drift.high, ".3f"),
            "removed, %": UNKNOWN
            if drift.law == "original"
            else with_interval(100 * drift.removed, 100 * drift.removed_low, 100 * drift.removed_high, ".0f"),
            "noise, nats": number(drift.noise),
        }
        for drift in outcome.drifts
    ]
    return pd.DataFrame(rows)


def _images_needed(needed: float | None) -> str:
    """Return the number of images that would detect a difference of the measured size."""
    if needed is None:
        return UNKNOWN
    return f"{needed:,.0f}" if needed <= MAX_NEEDED else f"> {MAX_NEEDED:,}"


def quality_table(quality: Quality) -> pd.DataFrame:
    """Return the comparison of every law with the original by every metric, with the verdict."""
    rows = [
        {
            "law": c.law,
            "size, pixels": format_size(c.size),
            "metric": metric_label(c.metric),
            "value": f"{c.value:.4g}",
            "difference": with_interval(c.difference, c.low, c.high, "+.3g"),
            "p (Holm)": f"{c.p:.2g}",
            "equivalence margin": UNKNOWN if math.isnan(c.margin) else f"{c.margin:.3g}",
            "p of equivalence (Holm)": UNKNOWN if math.isnan(c.p_equivalent) else f"{c.p_equivalent:.2g}",
            "verdict": c.verdict,
            "images": str(c.images),
            "images needed": _images_needed(c.needed),
        }
        for c in quality.comparisons
    ]
    return pd.DataFrame(rows)


def factors_at_sizes(law: ScalingLaw, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the scale factor of each layer of a run at each size.

    Args:
        law: the law.
        frame: the measurements, for the layers and their token counts.

    Returns:
        Columns `layer`, `size`, `tokens` (N), `training_tokens` (T), `ratio` (N/T), `scale_factor` (g).
    """
    known = visual(frame).dropna(subset=["training_tokens"])
    calls = known[["layer", "tokens", "training_tokens", "height", "width"]].drop_duplicates()
    rows = [
        {
            "layer": call.layer,
            "size": format_size((int(call.height), int(call.width))),
            "tokens": int(call.tokens),
            "training_tokens": int(call.training_tokens),
            "ratio": call.tokens / call.training_tokens,
            "scale_factor": law.scale_factor(str(call.layer), int(call.tokens), int(call.training_tokens)),
        }
        for call in calls.itertuples()
    ]
    return pd.DataFrame(rows, columns=["layer", "size", "tokens", "training_tokens", "ratio", "scale_factor"])


def kappa_of_laws(laws: Sequence[ScalingLaw], frame: pd.DataFrame) -> pd.DataFrame:
    """Compute the kappa in g^2 = 1 + kappa ln(N/T) of every law at every size, averaged over the layers.

    Sizes with N = T are left out: there g = 1 for every kappa.

    Args:
        laws: the laws.
        frame: the measurements, for the layers and their token counts.

    Returns:
        Columns `law`, `size`, `kappa`.
    """
    tables = [factors_at_sizes(law, frame).assign(law=law.name) for law in laws]
    table = pd.concat(tables).query("ratio != 1")
    table["kappa"] = (table["scale_factor"] ** 2 - 1) / np.log(table["ratio"])
    return table.groupby(["law", "size"], sort=False, as_index=False)["kappa"].mean()


def quality_values(quality: Quality) -> pd.DataFrame:
    """Return the metrics of the images under every law, the original first.

    Returns:
        Columns `law`, `size`, `metric`, `value`, `low`, `high`. The interval is the value of the original plus the 95 %
        interval of the difference from it. It is NaN for the original.
    """
    compared = quality.table()
    for end in ("low", "high"):
        compared[end] += compared["value"] - compared["difference"]
    before = quality.original.assign(size=quality.original["size"].map(format_size), law="original")
    columns = ["law", "size", "metric", "value", "low", "high"]
    return pd.concat([before, compared], ignore_index=True).reindex(columns=columns)


def quality_against_kappa(quality: Quality, kappas: pd.DataFrame) -> pd.DataFrame:
    """Return `quality_values` with the `kappa` of each law and size. The training size has no kappa and is left out.

    Args:
        quality: the metrics of the images.
        kappas: see `kappa_of_laws`.
    """
    return quality_values(quality).merge(kappas, on=["law", "size"])


def image_table(frame: pd.DataFrame, prompt: str, seed: int, quality: Quality | None) -> pd.DataFrame:
    """Return a row for each image of a prompt and seed: law, size, mean entropy over the layers (nats), metrics."""
    keys = ["law", "height", "width"]
    own = visual(frame[(frame["prompt"] == prompt) & (frame["seed"] == seed)])
    means = own.groupby([*keys, "layer"], sort=False)["entropy"].mean().groupby(keys, sort=False).mean()
    table = means.reset_index().assign(prompt=prompt, seed=seed)
    if quality is not None and len(quality.images):
        table = table.merge(quality.images, on=[*keys, "prompt", "seed"], how="left")
    return table


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each law, size and layer.

    The columns are the mean entropy (nats), its standard error over the prompts, the logit variance, and the attention
    distance.
    """
    keys = ["law", "height", "width", "layer", "kind", "query_tokens", "key_tokens"]
    values = ["entropy", "logit_variance", "attention_distance"]
    by_prompt = frame.groupby([*keys, "prompt"], sort=False)[values].mean().groupby(keys, sort=False)
    table = by_prompt.mean()
    table.insert(1, "entropy_se", by_prompt["entropy"].sem())
    return table.assign(prompts=by_prompt.size()).reset_index()


def number(value: float) -> str:
    """Return a number with three decimals.

    Examples:
        >>> number(0.12345), number(math.nan)
        ('0.123', '–')
    """
    return UNKNOWN if math.isnan(value) else f"{value:.3f}"


def with_interval(value: float, low: float, high: float, digits: str) -> str:
    """Return a value and its 95 % interval, if it is known.

    Examples:
        >>> with_interval(0.5, 0.4, 0.6, ".2f"), with_interval(0.5, math.nan, math.nan, ".2f")
        ('0.50 [0.40, 0.60]', '0.50')
        >>> with_interval(0.0, 0.0, 0.0, "+.3g")
        '0'
    """
    if math.isnan(value):
        return UNKNOWN
    if value == low == high:  # every image has the same value
        return f"{value:{digits}}".removeprefix("+" if not value else "")
    return f"{value:{digits}}" if math.isnan(low) else f"{value:{digits}} [{low:{digits}}, {high:{digits}}]"


def with_error(value: float, error: float) -> str:
    """Return a value and its standard error.

    Examples:
        >>> with_error(0.5, 0.01), with_error(0.5, math.nan)
        ('0.500 ± 0.010', '0.500')
    """
    return number(value) if math.isnan(error) else f"{value:.3f} ± {error:.3f}"


def span(factors: pd.DataFrame) -> str:
    """Return the range of the scale factors of a table, with their bounds.

    Examples:
        >>> span(pd.DataFrame({"scale_factor": [0.18, 6.0], "bound": ["", "at least"]}))
        '0.18 to at least 6.00'
    """
    ordered = factors.sort_values("scale_factor")
    ends = [format_factor(g, bound) for g, bound in zip(ordered["scale_factor"], ordered["bound"], strict=True)]
    return " to ".join(dict.fromkeys((ends[0], ends[-1])))


def between(low: float, high: float) -> str:
    """Return an interval.

    Examples:
        >>> between(0.1, 0.2), between(math.nan, math.nan)
        ('0.100 to 0.200', '–')
    """
    return UNKNOWN if math.isnan(low) else f"{low:.3f} to {high:.3f}"
