"""Find the g at which the measured entropy at N tokens equals the entropy at T, by refinement.

Every sweep also measures the curve H(g) of each layer: its entropy when the logits are multiplied by g. For fixed
queries and keys the curve falls, because dH/d ln g = -Var_A(logits). So H(g) = H(T) has a single root. The roots of
the curves of the original model are the first estimate.

Scaling one layer changes the queries of all later layers. So the model is sampled again under the estimated law, and
each g is multiplied by the root of its new curve. Refinement stops when the remaining drift is within its standard
error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import ConfigDict

from entropy_probe.attention import visual
from entropy_probe.errors import InputError
from entropy_probe.estimation.intervals import jackknife, mean_square, root, t_quantile
from entropy_probe.estimation.levels import Level, law_of_parts, noise_levels, part_labels
from entropy_probe.laws import MAX_FACTOR, MIN_FACTOR, Bound, ScalingLaw
from entropy_probe.models import Size
from entropy_probe.runs import Sweep, extend
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Count, Number

RESAMPLES = 400
"""Bootstrap resamples of the prompts for the interval of kappa."""


@dataclass(frozen=True)
class Round:
    """The drift that remains after one round of sampling.

    Attributes:
        number: 0 is the original model.
        drift: root mean square of H(N) - H(T) over layers and sizes, nats, without bias (`intervals.mean_square`).
        drift_se: its standard error, nats. NaN with fewer than three prompts.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    number: Count
    drift: Number
    drift_se: Number


@dataclass(frozen=True)
class FactorEstimate:
    """Scale factors, and the entropy curves that were measured under them.

    Attributes:
        g: scale factors by (layer, tokens, training_tokens).
        curves: entropy (nats) by (layer, tokens, training_tokens, scale_factor), a column per prompt.
        target: entropy (nats) at the training size by layer, a column per prompt.
        limits: by the keys of `g`, the bound of a factor that the curves before did not reach; see `next_limits`.
    """

    g: pd.Series
    curves: pd.DataFrame
    target: pd.DataFrame
    limits: Mapping[Any, Bound] = field(default_factory=dict)

    def entropy(self) -> pd.DataFrame:
        """Return H(N) under these scale factors, a column per prompt."""
        return self.curves.xs(1.0, level="scale_factor")

    def differences(self) -> pd.DataFrame:
        """Return H(N) - H(T), a column per prompt: differences within a prompt do not depend on its level."""
        entropy = self.entropy()
        return entropy - self.target.loc[entropy.index.get_level_values("layer")].to_numpy()

    def remaining_drift(self, number: int) -> Round:
        """Return the drift as the round of this number."""
        square = jackknife(mean_square, self.differences().to_numpy(dtype=float)[..., None])
        drift = root(square.value)
        return Round(number, drift, square.error / (2 * drift) if drift else root(square.error))

    def next_factors(self) -> pd.Series:
        """Multiply each g by the root of its measured curve, within the bounds."""
        factors = {
            key: float(np.clip(self.g[key] * np.exp(find_root(*curve)), MIN_FACTOR, MAX_FACTOR))
            for key, curve in self._log_curves()
        }
        return pd.Series(factors).rename_axis(self.g.index.names)

    def next_limits(self) -> dict[Any, Bound]:
        """Return which of `next_factors` are bounds, because the target is beyond the reach of `find_root`."""
        limits: dict[Any, Bound] = {}
        for key, (x, y, target) in self._log_curves():
            end = find_root(x, y, target)
            if len(x) > 1 and end <= 2 * x[0] - x[1] + 1e-9:
                limits[key] = "at most"
            elif len(x) > 1 and end >= 2 * x[-1] - x[-2] - 1e-9:
                limits[key] = "at least"
        return limits

    def bounds(self) -> pd.Series:
        """Return the bound of each factor: `at most`, `at least`, or empty."""
        at_ends = np.select([self.g <= MIN_FACTOR, self.g >= MAX_FACTOR], ["at most", "at least"], "")
        bounds = pd.Series(at_ends, index=self.g.index, dtype=object)
        for key, limit in self.limits.items():
            bounds[key] = limit
        return bounds

    def _log_curves(self) -> Iterator[tuple[Any, tuple[Any, Any, float]]]:
        """Yield the key of each factor, with ln g and the entropy of its curve, and the target."""
        mean = self.curves.mean(axis=1)
        for key in self.g.index:
            curve = mean.loc[key].sort_index()
            target = float(self.target.loc[key[0]].mean())
            yield key, (np.log(curve.index.to_numpy(float)), curve.to_numpy(float), target)

    def slopes(self) -> pd.Series:
        """Return dH/d ln g of each curve at its present g."""
        mean = self.curves.mean(axis=1).unstack("scale_factor")
        x = np.log(mean.columns.to_numpy(float))
        middle = int(np.argmin(np.abs(x)))
        low, high = max(0, middle - 1), min(len(x) - 1, middle + 1)
        return (mean.iloc[:, high] - mean.iloc[:, low]) / (x[high] - x[low])

    def factors(self) -> pd.DataFrame:
        """Return the scale factors with their 95 % intervals over the prompts.

        An error of H moves ln g by that error divided by dH/d ln g. A factor at a bound of the search has no interval.

        Returns:
            Columns `layer`, `tokens` (N), `training_tokens` (T), `scale_factor` (g), `low`, `high`, `bound` (`at most`,
            `at least`, or empty).
        """
        differences = self.differences().loc[self.g.index]
        quantile = t_quantile(differences.shape[1] - 1)
        steepness = np.minimum(self.slopes().reindex(self.g.index), -1e-3)
        reach = -quantile * differences.sem(axis=1) / steepness
        low, high = (self.g * np.exp(sign * reach) for sign in (-1, 1))
        table = pd.DataFrame({"scale_factor": self.g, "low": low, "high": high})
        table["bound"] = self.bounds().tolist()  # as the text dtype that a file is read with
        table.loc[table["bound"] != "", ["low", "high"]] = np.nan
        return table.reset_index()

    def kappa(self) -> pd.DataFrame:
        """Fit g^2 = 1 + kappa ln(N/T) per layer by least squares. The error comes from resampling the prompts.

        A layer with a factor at a bound has no error: its kappa is not known better than the factor.

        Returns:
            Columns `layer`, `kappa`, `kappa_se`, `low`, `high` (95 % interval), `paper` (1/ln T).
        """
        differences, slopes, bounds = self.differences(), self.slopes(), self.bounds()
        generator = np.random.default_rng(0)
        count = differences.shape[1]
        chosen = generator.integers(count, size=(RESAMPLES, count))
        noise = differences.to_numpy()[:, chosen].mean(-1) - differences.mean(axis=1).to_numpy()[:, None]
        steepness = np.minimum(slopes.reindex(self.g.index).to_numpy(), -1e-3)[:, None]
        resampled = pd.DataFrame(self.g.to_numpy()[:, None] * np.exp(-noise / steepness), index=self.g.index)
        rows = []
        for layer, g in self.g.groupby("layer", sort=False):
            tokens, trained = (g.index.get_level_values(n).to_numpy(float) for n in ("tokens", "training_tokens"))
            x = np.log(tokens / trained)
            kappas = x @ (resampled.loc[g.index].to_numpy() ** 2 - 1) / (x @ x)
            known = count > 1 and not (bounds.loc[g.index] != "").any()
            low, high = np.percentile(kappas, [2.5, 97.5]) if known else (np.nan, np.nan)
            rows.append(
                {
                    "layer": layer,
                    "kappa": float(x @ (g.to_numpy() ** 2 - 1) / (x @ x)),
                    "kappa_se": float(kappas.std(ddof=1)) if known else float("nan"),
                    "low": float(low),
                    "high": float(high),
                    "paper": float(1 / np.log(trained[0])),
                }
            )
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class Refined:
    """The result of `refine`.

    Attributes:
        best: scale factors, and the curves under the factors of the best round (of the original model for 0 rounds).
        original: the curves of the original model.
        rounds: the drift after each round; round 0 is the original model.
        law: the law with the factors of the best round.
    """

    best: FactorEstimate
    original: FactorEstimate
    rounds: tuple[Round, ...]
    law: ScalingLaw

    def entropies(self) -> pd.DataFrame:
        """Return mean entropies in nats: `layer`, `tokens`, `training_tokens`, `target`, `original`, `scaled`."""
        original = self.original.entropy().mean(axis=1)
        target = self.original.target.mean(axis=1).reindex(original.index.get_level_values("layer")).to_numpy()
        sampled = len(self.rounds) > 1
        scaled = self.best.entropy().mean(axis=1).reindex(original.index) if sampled else np.nan
        table = pd.DataFrame({"target": target, "original": original, "scaled": scaled}, dtype=float)
        return table.reset_index()

    def at_bounds(self) -> pd.DataFrame:
        """Return `layer`, `tokens`, `g` of the scale factors that reached a bound."""
        g = self.best.g
        return g[self.best.bounds() != ""].rename("g").reset_index()[["layer", "tokens", "g"]]


def refine(
    sweep: Sweep,
    sizes: list[Size],
    rounds: int,
    *,
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    progress: bool | str,
    on_round: Callable[[Round], Any] | None,
    level: Level = "layer",
) -> Refined:
    """Estimate g from the curves of a sweep, then sample again up to `rounds` times to refine it.

    Args:
        sweep: the sweep.
        sizes: the sizes to derive factors for.
        rounds: maximum number of rounds.
        prompts: derive from the images of these prompts.
        seeds: derive from the images of these seeds.
        progress: show progress bars; see `sweep`.
        on_round: called with the result of every round.
        level: what gets its own factor. For heads and steps, `layer` in the tables is a label; see `levels`.

    Raises:
        InputError: if the sweep has no measured curves, or has no pipeline to sample again.
    """
    selected = partial(_curves, sizes=sizes, prompts=prompts, seeds=seeds, level=level)
    curves = selected(sweep, "original")
    if curves.index.get_level_values("scale_factor").nunique() < 2:
        raise InputError(
            "the measured law needs the entropy curves H(g), but the sweep has none (scale_factors=()): "
            "sample again with the default scale_factors, or derive with method='gaussian'"
        )
    trained = curves.index.get_level_values("tokens") == curves.index.get_level_values("training_tokens")
    target = curves[trained].xs(1.0, level="scale_factor").droplevel(["tokens", "training_tokens"])
    g = pd.Series(1.0, index=curves[~trained].xs(1.0, level="scale_factor").index)

    noise = step_noise(sweep) if level == "step" else {}
    estimates = [FactorEstimate(g, curves[~trained], target)]
    history = [estimates[0].remaining_drift(0)]
    while len(history) <= rounds and not _converged(history):
        g, limits = estimates[-1].next_factors(), estimates[-1].next_limits()
        law = law_of_parts(knots(g), level, noise)
        sampled = extend(sweep, laws=[law], sizes=sizes, prompts=prompts, seeds=seeds, progress=progress)
        estimates.append(FactorEstimate(g, selected(sampled, law.name), target, limits))
        history.append(estimates[-1].remaining_drift(len(history)))
        if on_round:
            on_round(history[-1])
    if rounds:
        best = estimates[int(np.argmin([r.drift for r in history[1:]])) + 1]
    else:
        first = estimates[0]
        best = FactorEstimate(first.next_factors(), first.curves, target, first.next_limits())
    return Refined(best, estimates[0], tuple(history), law_of_parts(knots(best.g), level, noise))


def step_noise(sweep: Sweep) -> dict[int, float]:
    """Return the noise level of each sampling step of a sweep."""
    scheduler = getattr(sweep.pipeline, "scheduler", None)
    config = getattr(scheduler, "config", None)
    return noise_levels(sweep.frame(), int(getattr(config, "num_train_timesteps", None) or 1000))


def find_root(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"], target: float) -> float:
    """Find x at which a falling curve reaches `target`, by linear interpolation.

    Outside the curve, extrapolate with the slope at its end, by at most one interval.

    Examples:
        >>> find_root(np.array([0.0, 1.0]), np.array([3.0, 1.0]), 2.0)
        0.5
    """
    if target > y[0]:
        steps = min((target - y[0]) / max(y[0] - y[1], 1e-6), 1.0) if len(x) > 1 else 0.0
        return float(x[0] - steps * (x[1] - x[0])) if len(x) > 1 else 0.0
    if target < y[-1]:
        steps = min((y[-1] - target) / max(y[-2] - y[-1], 1e-6), 1.0) if len(x) > 1 else 0.0
        return float(x[-1] + steps * (x[-1] - x[-2])) if len(x) > 1 else 0.0
    return float(np.interp(-target, -y, x))


def knots(g: pd.Series) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return the pairs (ln(N/T), g) of each layer in ascending order, as `laws.Measured` stores them.

    Args:
        g: scale factors by (layer, tokens, training_tokens).

    Examples:
        >>> knots(pd.Series({("mid", 256, 64): 1.5, ("mid", 64, 64): 1.0}))["mid"][0]
        (0.0, 1.0)
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for (layer, tokens, trained), value in g.items():
        pairs.setdefault(str(layer), []).append((float(np.log(tokens / trained)), float(value)))
    return {layer: tuple(sorted(values)) for layer, values in pairs.items()}


def _converged(history: list[Round]) -> bool:
    """Return whether the drift is within its standard error. With an unknown error: only at no drift."""
    return len(history) > 1 and (history[-1].drift <= history[-1].drift_se or history[-1].drift == 0)


def _curves(
    sweep: Sweep, law: str, sizes: list[Size], prompts: tuple[str, ...], seeds: tuple[int, ...], level: Level
) -> pd.DataFrame:
    """Return the mean entropy of each part, token count and scale factor, a column per prompt."""
    frame = sweep.frame(curves=True)
    rows = visual(frame[(frame["law"] == law) & frame["prompt"].isin(prompts) & frame["seed"].isin(seeds)])
    rows = rows[pd.MultiIndex.from_frame(rows[["height", "width"]]).isin([sweep.manifest.training_size, *sizes])]
    rows = rows.assign(layer=part_labels(rows, level))
    keys = ["layer", "tokens", "training_tokens", "scale_factor", "prompt"]
    return rows.groupby(keys, sort=False)["entropy"].mean().unstack("prompt")
