"""Regression of the attention entropy on ln N: H = a + b ln N per layer and pooled, compared with other forms."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from jaxtyping import Float
from pydantic import ConfigDict, Field

from entropy_probe.attention import visual
from entropy_probe.errors import InputError
from entropy_probe.runs import Sweep
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Count, Number, Side, from_strict_json, to_strict_json
from entropy_probe.views import Viewed

POOLED = "(pooled)"
"""Layer name of the fit over all layers: a common slope, and an intercept for each layer."""

FORMULA = "entropy ~ log_tokens + C(layer) - 1"
"""The regression in statsmodels' notation. With `- 1`, every layer has an intercept and no layer is the reference."""

BENT_FORMULA = "entropy ~ below + above + C(layer) - 1"
"""The same with a bend at N = T: `below` is ln(N/T) where it is negative, `above` where it is positive, both else 0."""

Vector = Float[np.ndarray, " points"]


@dataclass(frozen=True)
class LogLaw:
    """H = intercept + slope ln N of one layer, in nats.

    Standard errors are clustered by prompt. The interval of the slope covers 95 %. With a single prompt, the standard
    errors and the interval are NaN.

    Attributes:
        layer: name of the layer, or `POOLED`.
        intercept: a, nats. For the pooled fit, the mean over the layers.
        intercept_se: standard error of a, nats. NaN for the pooled fit.
        slope: b, nats per unit of ln N. When N doubles, H rises by 0.69 b.
        slope_se: standard error of b.
        slope_low: lower end of the 95 % interval of b.
        slope_high: upper end of the 95 % interval of b.
        r_squared: fraction of the variance of H within a layer that ln N explains. Differences between the layers do
            not count.
        tokens: token counts N in the fit.
        prompts: number of prompts in the fit.
        slope_below: slope at N < T, from a fit with a bend at N = T. This and the following are NaN if T is unknown or
            the sweep has no sizes on both sides of T.
        slope_below_low: lower end of its 95 % interval.
        slope_below_high: upper end.
        slope_above: slope at N > T.
        slope_above_low: lower end of its 95 % interval.
        slope_above_high: upper end.
        bend_p: p value of the hypothesis that both slopes are equal (t test, errors clustered by prompt).
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: str
    intercept: Number
    intercept_se: Number
    slope: Number
    slope_se: Number
    slope_low: Number
    slope_high: Number
    r_squared: Number
    tokens: tuple[Count, ...]
    prompts: Count
    slope_below: Number = math.nan
    slope_below_low: Number = math.nan
    slope_below_high: Number = math.nan
    slope_above: Number = math.nan
    slope_above_low: Number = math.nan
    slope_above_high: Number = math.nan
    bend_p: Number = math.nan


@dataclass(frozen=True)
class _Rival:
    """A row of `Fit.rivals`."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: str
    form: str
    error: Number


Tokens = Annotated[int, Field(ge=1, le=2**53)]
"""A number of tokens in a file."""


@dataclass(frozen=True)
class _Points:
    """The columns of `Fit.points`; all are empty in a file of version 0.1.0."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layer: list[str] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    training_tokens: list[Tokens | Number] = field(default_factory=list)
    height: list[Side] = field(default_factory=list)
    width: list[Side] = field(default_factory=list)
    prompt: list[str] = field(default_factory=list)
    seed: list[int] = field(default_factory=list)
    entropy: list[Number] = field(default_factory=list)
    logit_variance: list[Number] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len({len(column) for column in vars(self).values()}) > 1:
            raise InputError("the columns of 'points' must have the same length")


@dataclass(frozen=True)
class _FitFile:
    """The fields that `Fit.to_json` writes."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    layers: Annotated[tuple[LogLaw, ...], Field(min_length=1)]
    rivals: list[_Rival]
    points: _Points = field(default_factory=_Points)


@dataclass(frozen=True)
class Fit(Viewed):
    """The entropy laws fitted to a sweep.

    Attributes:
        layers: the fit of each self-attention layer; the last is the pooled fit.
        rivals: columns `layer`, `form`, `error`. The error is the root mean square error (nats) at a token count that
            was left out of the fit, averaged over the token counts. The best form of a layer comes first. The ranking
            depends on the sizes of the sweep. NaN with fewer than three token counts.
        points: the fitted means: `layer`, `tokens`, `training_tokens`, `height`, `width`, `prompt`, `seed`, `entropy`
            (nats), `logit_variance` (nats^2).
    """

    layers: tuple[LogLaw, ...]
    rivals: pd.DataFrame
    points: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Return the fits as a table, one row per layer."""
        return pd.DataFrame([asdict(law) for law in self.layers])

    @property
    def pooled(self) -> LogLaw:
        """The fit over all layers: a common slope, and an intercept for each layer."""
        return self.layers[-1]

    def to_json(self) -> str:
        """Return the fits, the errors of the other forms and the fitted points as JSON text."""
        return to_strict_json(
            {
                "layers": [asdict(law) for law in self.layers],
                "rivals": self.rivals.to_dict("records"),
                "points": self.points.to_dict("list"),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Fit:
        """Parse the text of `to_json`. A file of version 0.1.0 has no points: the table is then empty.

        Raises:
            InputError: if the text is not a fit.
        """
        try:
            file = from_strict_json(_FitFile, text)
        except InputError as error:
            raise InputError(f"not a valid fit: {error}") from error
        rivals = pd.DataFrame([vars(row) for row in file.rivals], columns=["layer", "form", "error"])
        return cls(file.layers, rivals.astype({"error": float}), pd.DataFrame(vars(file.points)))

    def __str__(self) -> str:
        errors = self.rivals[self.rivals["layer"] == POOLED]
        line = f"pooled: H = a + b ln N with b = {self.pooled.slope:.3f} +- {self.pooled.slope_se:.3f}"
        if errors["error"].isna().any():
            return f"{line}; to compare other forms, sample at least three sizes with different token counts"
        ranked = ", ".join(f"{row.form} {row.error:.3f}" for row in errors.itertuples())
        return f"{line}; error at token counts left out of the fit, nats: {ranked}"


def fit(sweep: Sweep, law: str = "original") -> Fit:
    """Fit H = a + b ln N to the mean entropy of every self-attention layer, by ordinary least squares.

    A point is the mean over heads, steps, guidance branches and rows for one prompt, size and seed. Standard errors are
    clustered by prompt.

    Args:
        sweep: a sweep with at least two different token counts.
        law: name of the scaling law whose images are fitted.

    Returns:
        The fit of each layer, the pooled fit, and the errors of three other forms of H(N).

    Raises:
        InputError: if the sweep has fewer than two token counts under `law`.

    Examples:
        >>> import math, pandas as pd
        >>> from types import SimpleNamespace
        >>> rows = [
        ...     {"layer": "a", "prompt": p, "seed": 0, "tokens": n, "entropy": 0.5 + 0.8 * math.log(n) + level}
        ...     for p, level in [("cat", 0.1), ("dog", -0.1)]
        ...     for n in (64, 256, 1024)
        ... ]
        >>> table = pd.DataFrame(rows).assign(
        ...     law="original", kind="self", axes="spatial", training_tokens=256, height=8, width=8, logit_variance=1.0
        ... )
        >>> print(f"{fit(SimpleNamespace(frame=lambda: table)).pooled.slope:.2f}")
        0.80
    """
    points = layer_means(sweep.frame(), law)
    fewest = points.groupby("layer")["tokens"].nunique().min()
    if fewest < 2:
        raise InputError(
            f"fit needs at least two sizes with different token counts, got {fewest}: add a size to the sweep"
        )
    names = list(dict.fromkeys(points["layer"]))
    laws = [_log_law(name, points[points["layer"] == name]) for name in names]
    rivals = pd.concat([_form_errors(points[points["layer"] == name]).assign(layer=name) for name in names])
    pooled = rivals.groupby("form", as_index=False)["error"].agg(_root_mean_square).assign(layer=POOLED)
    ranked = pd.concat([rivals, pooled])[["layer", "form", "error"]]
    ranked["order"] = ranked["layer"].map({n: i for i, n in enumerate([*names, POOLED])})
    ranked = ranked.sort_values(["order", "error"]).drop(columns="order").reset_index(drop=True)
    return Fit((*laws, _log_law(POOLED, points)), ranked, points)


def layer_means(frame: pd.DataFrame, law: str = "original") -> pd.DataFrame:
    """Compute the mean entropy (nats) and logit variance (nats^2) of each visual layer, prompt, size and seed.

    Raises:
        InputError: if the table has no self-attention under `law`.

    Examples:
        >>> rows = [{"layer": "mid", "head": head, "entropy": h} for head, h in ((0, 2.0), (1, 3.0))]
        >>> table = pd.DataFrame(rows).assign(
        ...     law="original", kind="self", axes="spatial", tokens=64, training_tokens=64, height=8, width=8,
        ...     prompt="cat", seed=0, logit_variance=1.0,
        ... )
        >>> layer_means(table)["entropy"].tolist()
        [2.5]
    """
    rows = visual(frame[frame["law"] == law])
    if rows.empty:
        raise InputError(f"the sweep has no self-attention sampled under the law {law!r}: add it to laws")
    keys = ["layer", "tokens", "training_tokens", "height", "width", "prompt", "seed"]
    return rows.groupby(keys, sort=False, dropna=False)[["entropy", "logit_variance"]].mean().reset_index()


def _log_law(name: str, points: pd.DataFrame) -> LogLaw:
    """Fit `FORMULA` and `BENT_FORMULA`, with standard errors clustered by prompt."""
    clusters = points["prompt"].nunique()
    points = points.assign(log_tokens=np.log(points["tokens"]), entropy=points["entropy"].astype(float))
    result = _least_squares(FORMULA, points)
    slope_se = intercept_se = low = high = math.nan
    intercepts = result.params.drop("log_tokens")
    if clusters > 1:
        low, high = result.conf_int().loc["log_tokens"]
        slope_se = result.bse["log_tokens"]
        if len(intercepts) == 1:
            intercept_se = result.bse[intercepts.index[0]]
    within = points["entropy"] - points.groupby("layer")["entropy"].transform("mean")
    return LogLaw(
        layer=name,
        intercept=float(intercepts.mean()),
        intercept_se=float(intercept_se),
        slope=float(result.params["log_tokens"]),
        slope_se=float(slope_se),
        slope_low=float(low),
        slope_high=float(high),
        r_squared=1 - float(result.ssr / within.pow(2).sum()) if within.any() else math.nan,
        tokens=tuple(sorted(int(n) for n in points["tokens"].unique())),
        prompts=int(clusters),
        **_bend(points),
    )


def _bend(points: pd.DataFrame) -> dict[str, float]:
    """Return the slopes on both sides of N = T as fields of `LogLaw`; nothing if there are not two sides."""
    ratio = np.log(points["tokens"] / points["training_tokens"])
    points = points.assign(below=ratio.clip(upper=0), above=ratio.clip(lower=0))
    if ratio.isna().any() or not (ratio < 0).any() or not (ratio > 0).any():
        return {}
    result = _least_squares(BENT_FORMULA, points)
    found = {"slope_below": float(result.params["below"]), "slope_above": float(result.params["above"])}
    if points["prompt"].nunique() > 1:
        ends = result.conf_int()
        for side in ("below", "above"):
            found |= {f"slope_{side}_low": float(ends.loc[side, 0]), f"slope_{side}_high": float(ends.loc[side, 1])}
        found["bend_p"] = float(result.t_test("above = below").pvalue)
    return found


def _least_squares(formula: str, points: pd.DataFrame) -> Any:
    """Fit a formula. With several prompts, the errors are clustered by prompt, with t quantiles."""
    groups = points["prompt"].astype("category").cat.codes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # statsmodels warns of few clusters; the t quantiles account for them
        if groups.nunique() > 1:
            return smf.ols(formula, points).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
        return smf.ols(formula, points).fit()


def _predict_log(n: Vector, h: Vector, new: Vector) -> Vector:
    """Fit H = a + b ln N and predict at `new`."""
    slope, intercept = np.polyfit(np.log(n), h, 1)
    return np.asarray(intercept + slope * np.log(new))


def _predict_power(n: Vector, h: Vector, new: Vector) -> Vector:
    """Fit H = c N^p in ln H and predict at `new`."""
    power, constant = np.polyfit(np.log(n), np.log(np.maximum(h, 1e-6)), 1)
    return np.asarray(np.exp(constant + power * np.log(new)))


def _predict_linear(n: Vector, h: Vector, new: Vector) -> Vector:
    """Fit H = a + b N and predict at `new`."""
    slope, intercept = np.polyfit(n, h, 1)
    return np.asarray(intercept + slope * new)


FORMS: dict[str, Callable[[Vector, Vector, Vector], Vector]] = {
    "log": _predict_log,
    "power": _predict_power,
    "linear": _predict_linear,
}
"""Forms of H(N). Each function takes token counts, entropies, and the token counts to predict at."""


def _form_errors(points: pd.DataFrame) -> pd.DataFrame:
    """Compute the error of each form at every token count that was left out of its fit.

    The Gaussian form is H = c + ln N - sigma2/2, where sigma2 is the logit variance measured at the same size. Only the
    constant c is fitted, because the entropy of logits that are not Gaussian has a constant offset.
    """
    n = points["tokens"].to_numpy(dtype=float)
    h = points["entropy"].to_numpy(dtype=float)
    gaussian = gaussian_entropy(points).to_numpy(dtype=float)
    counts = np.unique(n)
    errors: dict[str, list[float]] = {form: [] for form in (*FORMS, "gaussian")}
    for count in counts if len(counts) > 2 else ():
        new = n == count
        predictions = {form: predict(n[~new], h[~new], n[new]) for form, predict in FORMS.items()}
        predictions["gaussian"] = gaussian[new] + np.mean(h[~new] - gaussian[~new])
        for form, predicted in predictions.items():
            errors[form].append(_root_mean_square(predicted - h[new]))
    return pd.DataFrame(
        [{"form": form, "error": float(np.mean(own)) if own else math.nan} for form, own in errors.items()]
    )


def gaussian_entropy(points: pd.DataFrame) -> pd.Series:
    """Return the entropy of N Gaussian logits, ln N - sigma2/2 (nats), from `tokens` and `logit_variance`.

    >>> gaussian_entropy(pd.DataFrame({"tokens": [64], "logit_variance": [2.0]})).round(3).tolist()
    [3.159]
    """
    return np.log(points["tokens"]) - points["logit_variance"] / 2


def _root_mean_square(values: Vector) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
