"""The law of the entropy in the number of tokens, H = a + b ln N, per layer and pooled, against its rivals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import statsmodels.api as sm
from jaxtyping import Float

from entropy_probe.attention import visual
from entropy_probe.errors import InputError
from entropy_probe.runs import Sweep
from entropy_probe.strict_json import to_strict_json
from entropy_probe.views import Viewed

POOLED = "(pooled)"
"""The name under which the fit over all layers is reported: one slope, an intercept for each layer."""

Vector = Float[np.ndarray, " cells"]


@dataclass(frozen=True)
class LogLaw:
    """H = intercept + slope ln N for one layer, in nats; standard errors are clustered by prompt.

    The interval is at 95 %. It and `slope_se` are NaN with a single prompt, which has no spread to learn from.
    """

    layer: str
    intercept: float
    intercept_se: float
    slope: float
    slope_se: float
    slope_low: float
    slope_high: float
    r_squared: float
    tokens: tuple[int, ...]
    prompts: int


@dataclass(frozen=True)
class Fit(Viewed):
    """The fitted laws of a sweep.

    Attributes:
        layers: the log law of every self-attention layer, and the pooled one, last.
        rivals: `layer`, `form`, `error`: root mean square error (nats) on a size that the form was not fitted to,
            averaged over the sizes; best first within a layer. NaN where too few sizes were sampled to leave one out.
        points: the means that were fitted: `layer`, `tokens`, `height`, `width`, `prompt`, `seed`, `entropy`,
            `logit_variance`.
    """

    layers: tuple[LogLaw, ...]
    rivals: pd.DataFrame
    points: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """The log laws, a row per layer."""
        return pd.DataFrame([asdict(law) for law in self.layers])

    @property
    def pooled(self) -> LogLaw:
        """One slope for all layers, an intercept for each."""
        return self.layers[-1]

    def to_json(self) -> str:
        """The laws and the ranking of their rivals."""
        fields = {"layers": [asdict(law) for law in self.layers], "rivals": self.rivals.to_dict("records")}
        return to_strict_json(fields)

    def __str__(self) -> str:
        best = self.rivals[self.rivals["layer"] == POOLED]
        line = f"pooled: H = a + b ln N with b = {self.pooled.slope:.3f} +- {self.pooled.slope_se:.3f}"
        if best["error"].isna().any():
            return f"{line}; whether another form fits better, three sizes with different token counts would tell"
        ranked = ", ".join(f"{row.form} {row.error:.3f}" for row in best.itertuples())
        return f"{line}; error on a size left out, nats: {ranked}"


def fit(sweep: Sweep, law: str = "original") -> Fit:
    """Fit H = a + b ln N to the mean entropy of every self-attention layer.

    A point is the mean over heads, steps, branches and rows for one prompt, size and seed.

    Args:
        sweep: at least two sizes with different token counts.
        law: the scaling law whose cells are fitted.

    Raises:
        InputError: if the sweep has fewer than two token counts under that law.
    """
    points = layer_means(sweep.frame(), law)
    if points.groupby("layer")["tokens"].nunique().min() < 2:
        raise InputError("a law in N needs at least two sizes with different token counts: sample more sizes")
    names = list(dict.fromkeys(points["layer"]))
    laws = [_log_law(name, points[points["layer"] == name]) for name in names]
    rivals = pd.concat([_rivals(points[points["layer"] == name]).assign(layer=name) for name in names])
    pooled = rivals.groupby("form", as_index=False)["error"].agg(_root_mean_square).assign(layer=POOLED)
    ranked = pd.concat([rivals, pooled])[["layer", "form", "error"]]
    ranked["order"] = ranked["layer"].map({n: i for i, n in enumerate([*names, POOLED])})
    ranked = ranked.sort_values(["order", "error"]).drop(columns="order").reset_index(drop=True)
    return Fit((*laws, _log_law(POOLED, points)), ranked, points)


def layer_means(frame: pd.DataFrame, law: str = "original") -> pd.DataFrame:
    """Mean entropy (nats) and logit variance (nats^2) of each visual layer for every prompt, size and seed."""
    own = visual(frame[frame["law"] == law])
    if own.empty:
        raise InputError(f"the sweep holds no self-attention sampled under the law {law!r}")
    keys = ["layer", "tokens", "training_tokens", "height", "width", "prompt", "seed"]
    means = own.groupby(keys, sort=False, dropna=False)[["entropy", "logit_variance"]].mean().reset_index()
    return means


def _log_law(name: str, points: pd.DataFrame) -> LogLaw:
    """Least squares with an intercept for each layer (one, for a single layer), clustered by prompt."""
    dummies = pd.get_dummies(points["layer"], dtype=float)
    design = np.column_stack([np.log(points["tokens"]), dummies])
    groups = points["prompt"].astype("category").cat.codes
    model = sm.OLS(points["entropy"].to_numpy(dtype=float), design)
    clusters = groups.nunique()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True) if clusters > 1 else model.fit()
        low, high = result.conf_int()[0] if clusters > 1 else (math.nan, math.nan)
    return LogLaw(
        layer=name,
        intercept=float(np.mean(result.params[1:])),
        intercept_se=float(result.bse[1]) if clusters > 1 and len(result.params) == 2 else math.nan,
        slope=float(result.params[0]),
        slope_se=float(result.bse[0]) if clusters > 1 else math.nan,
        slope_low=float(low),
        slope_high=float(high),
        r_squared=float(result.rsquared),
        tokens=tuple(sorted(int(n) for n in points["tokens"].unique())),
        prompts=int(clusters),
    )


def _predict_log(n: Vector, h: Vector, new: Vector) -> Vector:
    slope, intercept = np.polyfit(np.log(n), h, 1)
    return np.asarray(intercept + slope * np.log(new))


def _predict_power(n: Vector, h: Vector, new: Vector) -> Vector:
    """H = c N^p, fitted in ln H."""
    power, constant = np.polyfit(np.log(n), np.log(np.maximum(h, 1e-6)), 1)
    return np.asarray(np.exp(constant + power * np.log(new)))


def _predict_linear(n: Vector, h: Vector, new: Vector) -> Vector:
    slope, intercept = np.polyfit(n, h, 1)
    return np.asarray(intercept + slope * new)


FORMS: dict[str, Callable[[Vector, Vector, Vector], Vector]] = {
    "log": _predict_log,
    "power": _predict_power,
    "linear": _predict_linear,
}
"""Rival forms: (tokens, entropy) to fit, and the tokens to predict at."""


def _rivals(points: pd.DataFrame) -> pd.DataFrame:
    """Error of each form on every token count that was left out of its fit.

    The Gaussian form has nothing to fit: H = ln N - sigma2/2 with the logit variance measured at that very size.
    """
    n = points["tokens"].to_numpy(dtype=float)
    h = points["entropy"].to_numpy(dtype=float)
    gaussian = np.maximum(0.0, np.log(n) - points["logit_variance"].to_numpy(dtype=float) / 2)
    rows = []
    counts = np.unique(n)
    for form, predict in FORMS.items():
        errors = []
        for left_out in counts:
            out = n == left_out
            if len(counts) > 2:
                errors.append(_root_mean_square(predict(n[~out], h[~out], n[out]) - h[out]))
        rows.append({"form": form, "error": float(np.mean(errors)) if errors else math.nan})
    rows.append({"form": "gaussian", "error": _root_mean_square(gaussian - h)})
    return pd.DataFrame(rows)


def _root_mean_square(values: Vector) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
