"""The measured scaling law: the g at which the entropy of each layer at N tokens is what it was at T.

Every sampling also measures the curve H(m) of each layer, its entropy with the logits multiplied by m, on the queries
and keys at hand. For fixed queries and keys it falls steadily, since dH/d ln m = -Var_A(logits), so H(m) = H_T has one
root. The roots for the original model are the first g. But a layer that attends differently changes the queries of the
layers behind it, so the model is sampled again with the law applied and g is multiplied by the root of the new curve,
until the drift that remains is within its standard error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from entropy_probe.attention import visual
from entropy_probe.errors import InputError
from entropy_probe.estimation.calibration import calibrate
from entropy_probe.estimation.regression import layer_means
from entropy_probe.laws import Gaussian, Measured, ScalingLaw, from_json, to_json
from entropy_probe.models import CaptionedImages, Size
from entropy_probe.runs import Sweep, extend
from entropy_probe.strict_json import nan_for_null, to_strict_json

LEAST, MOST = 0.2, 6.0
"""Bounds of g: a layer that would need more has too little entropy to give, or too little room for it under ln N."""

RESAMPLES = 400
"""Bootstrap resamples of the prompts behind the interval of kappa."""


@dataclass(frozen=True)
class Round:
    """One sampling under a law: mean over layers and sizes of |H(N) - H(T)|, nats, and its standard error."""

    number: int
    drift: float
    drift_se: float


@dataclass(frozen=True)
class Derivation:
    """A derived law and how it was found.

    Attributes:
        law: the law to apply.
        kappa: `layer`, `kappa`, `kappa_se`, `low`, `high` (95 %), `paper` (1/ln T): g^2 = 1 + kappa ln(N/T).
        rounds: what remained after each sampling; round 0 is the original model.
        unreachable: `layer`, `tokens`, `g` of the layers whose g ran into its bounds.
    """

    law: Measured
    kappa: pd.DataFrame
    rounds: tuple[Round, ...]
    unreachable: pd.DataFrame = field(repr=False)

    def to_json(self) -> str:
        """The law as `laws.to_json` writes it, with the way there under `derivation`."""
        way = {
            "kappa": self.kappa.to_dict("records"),
            "rounds": [asdict(r) for r in self.rounds],
            "unreachable": self.unreachable.to_dict("records"),
        }
        return to_strict_json({**json.loads(to_json(self.law)), "derivation": way})

    @classmethod
    def from_json(cls, text: str) -> Derivation:
        """What `to_json` wrote.

        Raises:
            InputError: for text that is no derivation.
        """
        law = from_json(text)
        way = json.loads(text).get("derivation")
        if not isinstance(law, Measured) or way is None:
            raise InputError("this law does not tell how it was derived")
        kappa = pd.DataFrame(way["kappa"]).astype({"kappa": float, "kappa_se": float, "low": float, "high": float})
        unreachable = pd.DataFrame(way["unreachable"], columns=["layer", "tokens", "g"])
        return cls(law, kappa, tuple(Round(**nan_for_null(r)) for r in way["rounds"]), unreachable)


def derive(
    sweep: Sweep,
    method: Literal["measured", "gaussian", "calibrated"] = "measured",
    *,
    rounds: int = 3,
    images: CaptionedImages | None = None,
    progress: bool = True,
) -> ScalingLaw:
    """The scaling law that a sweep asks for.

    Args:
        sweep: sampled under `original`, at the training size and at others.
        method: `measured` samples again to refine; `gaussian` takes the logit variance of the training size;
            `calibrated` lowers the denoising loss of `images` at the sizes of the sweep.
        rounds: most samplings of the refinement of `measured`; 0 keeps the first estimate.
        images: captioned, for `calibrated`; see `pipelines.ImageFolder` and `reference.images`.
        progress: show progress bars.

    Raises:
        InputError: if the sweep lacks the training size or another one, has no pipeline to sample again, or
            `calibrated` has no images.
    """
    if method == "gaussian":
        return derive_gaussian(sweep)
    if method == "calibrated":
        if images is None or sweep.pipeline is None:
            raise InputError("the calibrated law needs captioned images, and a sweep with its pipeline")
        _check_sizes(sweep)
        return calibrate(sweep.pipeline, images, sweep.grid.sizes, progress=progress).law
    return derive_measured(sweep, rounds=rounds, progress=progress).law


def derive_gaussian(sweep: Sweep) -> Gaussian:
    """The Gaussian law from the logit variance that each layer has at the training size.

    Raises:
        InputError: if the training size was not sampled.
    """
    means = layer_means(sweep.frame())
    _check_sizes(sweep)
    trained = means[means["tokens"] == means["training_tokens"]].groupby("layer", sort=False)["logit_variance"].mean()
    return Gaussian({str(layer): float(variance) for layer, variance in trained.items()})


def derive_measured(
    sweep: Sweep, *, rounds: int = 3, progress: bool = True, on_round: Callable[[Round], Any] | None = None
) -> Derivation:
    """As `derive(method="measured")`, with the way there.

    The refinement samples with the first half of the seeds; the others stay unseen for validation.

    Args:
        sweep: see `derive`.
        rounds: see `derive`.
        progress: see `derive`.
        on_round: told of every sampling as it ends.
    """
    _check_sizes(sweep)
    sizes = _other_sizes(sweep)
    seeds = sweep.grid.seeds[: (len(sweep.grid.seeds) + 1) // 2]
    curves = _curves(sweep, "original", seeds)
    trained = curves.index.get_level_values("tokens") == curves.index.get_level_values("training_tokens")
    target = curves[trained].xs(1.0, level="scale_factor").droplevel(["tokens", "training_tokens"])
    g = pd.Series(1.0, index=curves[~trained].xs(1.0, level="scale_factor").index)

    tried = [_Try(g, curves[~trained], target)]
    history = [tried[0].remaining(0)]
    while len(history) <= rounds and not (
        len(history) > 1 and history[-1].drift <= history[-1].drift_se  # one prompt has no error to stop at
    ):
        g = tried[-1].next()
        law = Measured(_points(g))
        again = extend(sweep, laws=[law], sizes=sizes, seeds=seeds, progress=progress)
        tried.append(_Try(g, _curves(again, law.name, seeds), target))
        history.append(tried[-1].remaining(len(history)))
        if on_round:
            on_round(history[-1])
    best = tried[int(np.argmin([r.drift for r in history[1:]])) + 1] if rounds else tried[0].moved()
    kappa = best.kappa()
    by_layer = kappa.set_index("layer")
    law = Measured(_points(best.g), by_layer["kappa"].to_dict(), by_layer["kappa_se"].to_dict())
    bound = best.g[(best.g <= LEAST) | (best.g >= MOST)].rename("g").reset_index()[["layer", "tokens", "g"]]
    return Derivation(law, kappa, tuple(history), bound)


@dataclass(frozen=True)
class _Try:
    """A set of g, what was measured under it, and what is aimed at.

    Attributes:
        g: by (layer, tokens, training_tokens).
        curves: entropy by (layer, tokens, training_tokens, scale_factor), a column per prompt.
        target: entropy at the training size by layer, a column per prompt.
    """

    g: pd.Series
    curves: pd.DataFrame
    target: pd.DataFrame

    def differences(self) -> pd.DataFrame:
        """H(N) - H(T), a column per prompt: the prompt's own level cancels."""
        here = self.curves.xs(1.0, level="scale_factor")
        aim = self.target.loc[here.index.get_level_values("layer")].to_numpy()
        return here - aim

    def remaining(self, number: int) -> Round:
        differences = self.differences()
        errors = differences.sem(axis=1)
        return Round(number, float(differences.mean(axis=1).abs().mean()), float(errors.mean()))

    def next(self) -> pd.Series:
        """g times the root of each measured curve, within the bounds."""
        moved = {}
        mean = self.curves.mean(axis=1)
        for key, g in self.g.items():
            curve = mean.loc[key].sort_index()
            root = _root(
                np.log(curve.index.to_numpy(float)), curve.to_numpy(float), float(self.target.loc[key[0]].mean())
            )
            moved[key] = float(np.clip(g * np.exp(root), LEAST, MOST))
        return pd.Series(moved).rename_axis(self.g.index.names)

    def moved(self) -> _Try:
        return _Try(self.next(), self.curves, self.target)

    def slopes(self) -> pd.Series:
        """dH/d ln g of every curve at its present g."""
        mean = self.curves.mean(axis=1).unstack("scale_factor")
        x = np.log(mean.columns.to_numpy(float))
        middle = int(np.argmin(np.abs(x)))
        low, high = max(0, middle - 1), min(len(x) - 1, middle + 1)
        return (mean.iloc[:, high] - mean.iloc[:, low]) / (x[high] - x[low])

    def kappa(self) -> pd.DataFrame:
        """kappa per layer by least squares through g = 1 at N = T; its error from resampling the prompts."""
        differences, slopes = self.differences(), self.slopes()
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
            spread = x @ (resampled.loc[g.index].to_numpy() ** 2 - 1) / (x @ x)
            low, high = np.percentile(spread, [2.5, 97.5]) if count > 1 else (np.nan, np.nan)
            rows.append(
                {
                    "layer": layer,
                    "kappa": float(x @ (g.to_numpy() ** 2 - 1) / (x @ x)),
                    "kappa_se": float(spread.std(ddof=1)) if count > 1 else float("nan"),
                    "low": float(low),
                    "high": float(high),
                    "paper": float(1 / np.log(trained[0])),
                }
            )
        return pd.DataFrame(rows)


def _root(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"], aim: float) -> float:
    """x at which a falling curve reaches `aim`, between its points and, by its last slope, one point's width beyond."""
    if aim > y[0]:
        steps = min((aim - y[0]) / max(y[0] - y[1], 1e-6), 1.0) if len(x) > 1 else 0.0
        return float(x[0] - steps * (x[1] - x[0])) if len(x) > 1 else 0.0
    if aim < y[-1]:
        steps = min((y[-1] - aim) / max(y[-2] - y[-1], 1e-6), 1.0) if len(x) > 1 else 0.0
        return float(x[-1] + steps * (x[-1] - x[-2])) if len(x) > 1 else 0.0
    return float(np.interp(-aim, -y, x))


def _curves(sweep: Sweep, law: str, seeds: tuple[int, ...]) -> pd.DataFrame:
    frame = sweep.frame(curves=True)
    sizes = [sweep.manifest.training_size, *_other_sizes(sweep)]
    own = visual(frame[(frame["law"] == law) & frame["seed"].isin(seeds)])
    own = own[pd.MultiIndex.from_frame(own[["height", "width"]]).isin(sizes)]
    keys = ["layer", "tokens", "training_tokens", "scale_factor", "prompt"]
    means = own.groupby(keys, sort=False)["entropy"].mean().unstack("prompt")
    return means


def _points(g: pd.Series) -> dict[str, tuple[tuple[float, float], ...]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for (layer, tokens, trained), value in g.items():
        points.setdefault(str(layer), []).append((float(np.log(tokens / trained)), float(value)))
    return {layer: tuple(sorted(pairs)) for layer, pairs in points.items()}


def _other_sizes(sweep: Sweep) -> list[Size]:
    """The sizes with another number of tokens than the training size: the others have nothing to say of a law in N."""
    height, width = sweep.manifest.training_size
    return [size for size in sweep.grid.sizes if size[0] * size[1] != height * width]


def _check_sizes(sweep: Sweep) -> None:
    trained = sweep.manifest.training_size
    if trained not in sweep.grid.sizes:
        raise InputError(f"the sweep lacks the training size, {trained[0]}x{trained[1]}: sample it too")
    if not _other_sizes(sweep):
        raise InputError(
            "no size with another number of tokens than the training size was sampled: a law in N needs at least one"
        )
