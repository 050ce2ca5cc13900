"""Build tables: rounded for people, and at full precision for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from entropy_probe.attention import Captured, visual
from entropy_probe.estimation import Derivation, Fit
from entropy_probe.evaluation import Drift, MetricDifference, Outcome, Quality, metric_and_network
from entropy_probe.evaluation.differences import UNDECIDED
from entropy_probe.evaluation.quality_summary import MAX_NEEDED
from entropy_probe.laws import Paper, ScalingLaw, factor_bound, factors, format_factor
from entropy_probe.models import format_size, short_name
from entropy_probe.plots.numbers import INTERVAL, UNKNOWN, between, decimals, fixed, number, p_value, with_error


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
            "slope b": number(law.slope),
            INTERVAL: between(law.slope_low, law.slope_high),
            "slope at N < T": number(law.slope_below),
            "slope at N > T": number(law.slope_above),
            "intercept a, nats": number(law.intercept),
            "standard error of a": number(law.intercept_se),
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
    """Return the mean entropy H of the original model and its standard error, in nats.

    Rows are layers. The columns have two levels: the size, and `H` or `error`.
    """
    table = summary(visual(frame[frame["law"] == "original"]))
    table["size"] = [format_size((int(h), int(w))) for h, w in zip(table["height"], table["width"], strict=True)]
    order = table.assign(area=table["height"] * table["width"]).sort_values("area")["size"].drop_duplicates()
    wide = table.pivot(index="layer", columns="size", values=["entropy", "entropy_se"])
    wide = wide.reindex(index=table["layer"].drop_duplicates())
    columns = {("", "layer"): [short_name(name) for name in wide.index]}
    for size in order:
        for statistic, title in (("entropy", "H"), ("entropy_se", "error")):
            columns[f"{size} px", title] = [number(value) for value in wide[statistic, size]]
    return pd.DataFrame(columns)


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
    """Return g of each layer with its interval as text.

    Rows are layers. The columns have two levels: the size, and `g` or the interval.

    Args:
        table: see `factors_with_intervals`.
    """
    layers = dict.fromkeys(table["layer"])
    columns = {("", "layer"): [short_name(name) for name in layers]}
    for size, own in table.groupby("size", sort=False):
        by_layer = own.set_index("layer")
        g = {row.Index: format_factor(row.scale_factor, row.bound) for row in by_layer.itertuples()}
        intervals = {row.Index: between(row.low, row.high, 2) for row in by_layer.itertuples()}
        columns[f"{size} px", "g"] = [g.get(layer, UNKNOWN) for layer in layers]
        columns[f"{size} px", INTERVAL] = [intervals.get(layer, UNKNOWN) for layer in layers]
    return pd.DataFrame(columns)


def rounds_table(derivation: Derivation) -> pd.DataFrame:
    """Return the drift that remained after each round of refinement. Round 0 is the original model."""
    rows = [
        {"round": str(r.number), "drift, nats": number(r.drift), "standard error": number(r.drift_se)}
        for r in derivation.rounds
    ]
    return pd.DataFrame(rows)


def drift_table(outcome: Outcome) -> pd.DataFrame:
    """Return the drift under every law at every size, at the three levels."""
    rows = [
        {
            "level": drift.level,
            "law": drift.law,
            "size, pixels": format_size(drift.size),
            "drift, nats": number(drift.drift),
            INTERVAL: between(drift.low, drift.high),
            **removed_fraction(drift),
            "noise, nats": number(drift.noise),
        }
        for drift in outcome.drifts
    ]
    return pd.DataFrame(rows)


def removed_fraction(drift: Drift) -> dict[str, str]:
    """Return the fraction of the drift that a law removes, and its interval, as two cells of a table."""
    original = drift.law == "original"
    low, high = 100 * drift.removed_low, 100 * drift.removed_high
    return {
        "removed, %": UNKNOWN if original else fixed(100 * drift.removed, 0),
        "95 % interval, %": UNKNOWN if original else between(low, high, 0),
    }


def images_needed(needed: float | None, sampled: int = 0) -> str:
    """Return the number of images that would detect a difference of the measured size, rounded to two digits.

    Args:
        needed: the estimate. It is a normal approximation, which is too low for few prompts.
        sampled: number of images that did not decide the comparison: more are needed.

    Examples:
        >>> images_needed(1234.0), images_needed(1e9), images_needed(None), images_needed(3.0, sampled=6)
        ('1,200', '> 100,000', '–', '> 6')
    """
    if needed is None:
        return UNKNOWN
    if needed <= sampled:
        return f"> {sampled}"
    return f"{float(f'{needed:.2g}'):,.0f}" if needed <= MAX_NEEDED else f"> {MAX_NEEDED:,}"


def metric_decimals(comparison: MetricDifference) -> int:
    """Return the decimals of a metric: a tenth of its equivalence margin is visible."""
    if math.isfinite(comparison.margin):
        return decimals(comparison.margin)
    reach = (comparison.high - comparison.low) / 2
    return decimals(reach if reach > 0 else comparison.value)


def quality_table(quality: Quality) -> pd.DataFrame:
    """Return the comparison of every law with the original by every metric, with the verdict."""
    before = {(row["size"], row["metric"]): row["value"] for row in quality.original.to_dict("records")}
    rows = []
    for c in quality.comparisons:
        places = metric_decimals(c)
        rows.append(
            {
                "law": c.law,
                "size, pixels": format_size(c.size),
                "metric": metric_label(c.metric),
                "original": fixed(before.get((c.size, c.metric), c.value - c.difference), places),
                "value": fixed(c.value, places),
                "difference": fixed(c.difference, places, sign=True),
                INTERVAL: between(c.low, c.high, places, sign=True),
                "p (Holm)": p_value(c.p),
                "equivalence margin": UNKNOWN if math.isnan(c.margin) else fixed(c.margin, places),
                "p of equivalence (Holm)": p_value(c.p_equivalent),
                "verdict": c.verdict,
                "images": str(c.images),
                "images needed": images_needed(c.needed, c.images if c.verdict == UNDECIDED else 0),
            }
        )
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
        Columns `law`, `size`, `metric`, `value`, `difference` from the original, `low`, `high` (95 % interval of the
        difference; NaN for the original).
    """
    before = quality.original.assign(size=quality.original["size"].map(format_size), law="original", difference=0.0)
    columns = ["law", "size", "metric", "value", "difference", "low", "high"]
    return pd.concat([before, quality.table()], ignore_index=True).reindex(columns=columns)


def quality_against_kappa(quality: Quality, kappas: pd.DataFrame) -> pd.DataFrame:
    """Return `quality_values` with the `kappa` of each law and size. The training size has no kappa and is left out.

    Args:
        quality: the metrics of the images.
        kappas: see `kappa_of_laws`.
    """
    return quality_values(quality).merge(kappas, on=["law", "size"])


def image_table(frame: pd.DataFrame, quality: Quality | None = None) -> pd.DataFrame:
    """Return a row for each image: law, size, prompt, seed, mean entropy over the layers (nats), and its metrics."""
    keys = ["law", "height", "width", "prompt", "seed"]
    by_layer = visual(frame).groupby([*keys, "layer"], sort=False)["entropy"].mean()
    table = by_layer.groupby(keys, sort=False).mean().reset_index()
    if quality is not None and len(quality.images):
        table = table.merge(quality.images, on=keys, how="left")
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
