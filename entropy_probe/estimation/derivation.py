"""Derive a scaling law from a sweep: measured, Gaussian or calibrated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from entropy_probe.deprecation import renamed_arguments, warn_renamed
from entropy_probe.errors import InputError
from entropy_probe.estimation.calibration import ALL_LAYERS, Calibration, calibrate
from entropy_probe.estimation.derivation_record import DerivationRecord
from entropy_probe.estimation.levels import Level
from entropy_probe.estimation.origins import with_origin
from entropy_probe.estimation.refinement import Refined, Round, refine
from entropy_probe.estimation.regression import layer_means
from entropy_probe.laws import (
    DERIVED,
    Bound,
    Gaussian,
    Measured,
    ScalingLaw,
    bound_between,
    factor_bound,
    from_json,
    to_json,
)
from entropy_probe.models import CaptionedImages, Size
from entropy_probe.paths import is_file
from entropy_probe.runs import Grid, Sweep
from entropy_probe.strict_json import (
    from_strict_json,
    read_bounded,
    to_strict_json,
)
from entropy_probe.views import Viewed

KAPPA_COLUMNS = ["layer", "kappa", "kappa_se", "low", "high", "paper"]
ENTROPY_COLUMNS = ["layer", "tokens", "training_tokens", "target", "original", "scaled"]
BOUND_COLUMNS = ["layer", "tokens", "g"]
FACTOR_COLUMNS = ["layer", "tokens", "training_tokens", "scale_factor", "low", "high", "bound"]


def _empty(columns: list[str]) -> Callable[[], pd.DataFrame]:
    return lambda: pd.DataFrame(columns=columns)


def _table(rows: list[Any], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in rows], columns=columns)


@dataclass(frozen=True)
class Derivation(Viewed):
    """A derived scaling law, and how it was derived.

    `apply`, `scaled`, `laws.factors`, `sweep(laws=[...])` and `validate` accept a derivation and use its `law`.

    Attributes:
        law: the law to apply.
        kappa: a fit of g^2 = 1 + kappa ln(N/T) to the factors of each layer. One number does not describe factors that
            bend at N = T; see `factors`. Columns `layer`, `kappa`, `kappa_se`, `low`, `high` (95 % interval), `paper`
            (the value of the paper's law, 1/ln T).
        rounds: the drift that remained after each round of sampling; round 0 is the original model. Empty for methods
            that do not sample.
        unreachable: columns `layer`, `tokens`, `g` of the scale factors that reached a bound of the search.
        entropies: mean entropies in nats. Columns `layer`, `tokens` (N), `training_tokens` (T), `target` (H at T),
            `original` (H at N without a law) and `scaled` (H at N under the law; NaN if it was not sampled).
        calibration: the details of a calibrated law.
        prompts: the prompts whose images the law was derived from. `validate` judges the law on other ones.
        seeds: their seeds.
        factors: for `measured`, g of each layer at each size with its interval; see
            `refinement.FactorEstimate.factors`.
    """

    law: ScalingLaw
    kappa: pd.DataFrame = field(default_factory=_empty(KAPPA_COLUMNS), repr=False)
    rounds: tuple[Round, ...] = ()
    unreachable: pd.DataFrame = field(default_factory=_empty(BOUND_COLUMNS), repr=False)
    entropies: pd.DataFrame = field(default_factory=_empty(ENTROPY_COLUMNS), repr=False)
    calibration: Calibration | None = field(default=None, repr=False)
    prompts: tuple[str, ...] = field(default=(), repr=False)
    seeds: tuple[int, ...] = field(default=(), repr=False)
    factors: pd.DataFrame = field(default_factory=_empty(FACTOR_COLUMNS), repr=False)

    @property
    def name(self) -> str:
        """The name of the law."""
        return self.law.name

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        """Return the g of the law; see `laws.ScalingLaw`."""
        return self.law.scale_factor(layer, tokens, training_tokens)

    def factor_bound(self, layer: str, tokens: int, training_tokens: int) -> Bound:
        """Return whether g is only a bound; see `laws.factor_bound`."""
        own = self.factors[self.factors["layer"] == layer]
        if own.empty:
            return factor_bound(self.law, layer, tokens, training_tokens)
        ratios = np.log(own["tokens"].to_numpy(float) / own["training_tokens"].to_numpy(float))
        return bound_between([*zip(ratios, own["bound"], strict=True)], math.log(tokens / training_tokens))

    def to_json(self) -> str:
        """Return JSON text: the law as `laws.to_json` writes it, and the derivation under the key `derivation`."""
        record = {
            "kappa": self.kappa.to_dict("records"),
            "rounds": [asdict(r) for r in self.rounds],
            "unreachable": self.unreachable.to_dict("records"),
            "entropies": self.entropies.to_dict("records"),
            "calibration": json.loads(self.calibration.to_json()) if self.calibration else None,
            "prompts": self.prompts,
            "seeds": self.seeds,
            "factors": self.factors.to_dict("records"),
        }
        return to_strict_json({**json.loads(to_json(self.law)), "derivation": record})

    @classmethod
    def from_json(cls, text: str) -> Derivation:
        """Parse the text of `to_json`.

        Raises:
            InputError: if the text is not a law, or is a law without the record of its derivation.
        """
        law = from_json(text)
        record = from_strict_json(dict[str, Any], text).get("derivation")
        if record is None:
            raise InputError(f"the {law.name} law has no 'derivation' record: read it with laws.from_json")
        try:
            file = from_strict_json(DerivationRecord, json.dumps(record))
            calibration = None if file.calibration is None else Calibration.from_json(json.dumps(file.calibration))
        except InputError as error:
            raise InputError(f"not a valid derivation: {error}") from error
        return cls(
            law,
            _table(file.kappa, KAPPA_COLUMNS),
            file.rounds,
            _table(file.unreachable, BOUND_COLUMNS),
            _table(file.entropies, ENTROPY_COLUMNS).astype(dict.fromkeys(ENTROPY_COLUMNS[3:], float)),
            calibration,
            file.prompts,
            file.seeds,
            _table(file.factors, FACTOR_COLUMNS).astype(dict.fromkeys(FACTOR_COLUMNS[3:6], float)),
        )


@renamed_arguments(pictures="images")
def derive(
    sweep: Sweep,
    method: Literal["measured", "gaussian", "calibrated"] = "measured",
    *,
    rounds: int = 3,
    level: Level = "layer",
    images: CaptionedImages | None = None,
    hold_out: bool = True,
    progress: bool | str = True,
    on_round: Callable[[Round], Any] | None = None,
) -> Derivation:
    """Derive the scaling law of a model from a sweep of the original model.

    Args:
        sweep: a sweep under `original`, at the training size and at least one size with another token count.
        method: `measured` finds the g at which the entropy at N equals the entropy at T, and samples again to refine
            it. `gaussian` computes g from the logit variance at the training size and samples nothing. `calibrated`
            minimises the denoising loss of `images` at the sizes of the sweep.
        rounds: for `measured`, the maximum number of rounds of sampling; 0 keeps the first estimate.
        level: for `measured`, what gets its own g: each `layer`, each `head`, or each head at each `step`.
        images: for `calibrated`, captioned real images; see `models.ImageFolder` and `reference.images`.
        hold_out: derive from the first half of the prompts and of the seeds, so that `validate` can judge the law on
            the others. With a single prompt or seed, it is in both halves.
        progress: show progress bars; see `sweep`.
        on_round: called with the result of every round as it ends.

    Returns:
        The derivation. Its `law` is the scaling law.

    Raises:
        InputError: if the method is unknown, the sweep lacks a size or the measured curves H(g), the pipeline is needed
            but missing, or `calibrated` has no images.

    Examples:
        >>> from types import SimpleNamespace
        >>> rows = [{"layer": "mid", "tokens": n, "entropy": 3.0, "logit_variance": 4.0} for n in (64, 256)]
        >>> table = pd.DataFrame(rows).assign(
        ...     law="original", kind="self", axes="spatial", training_tokens=64, height=8, width=8, prompt="cat", seed=0
        ... )
        >>> sweep = SimpleNamespace(
        ...     frame=lambda: table,
        ...     grid=SimpleNamespace(sizes=[(8, 8), (16, 16)], prompts=("cat",), seeds=(0,)),
        ...     manifest=SimpleNamespace(training_size=(8, 8), model="mine", fingerprint="2:0", pipeline="Mine"),
        ...     pipeline=None,
        ... )
        >>> law = derive(sweep, "gaussian").law
        >>> print(f"{law.scale_factor('mid', tokens=256, training_tokens=64):.3f}")
        1.301
        >>> derive(sweep, "gausian")
        Traceback (most recent call last):
            ...
        entropy_probe.errors.InputError: method must be 'measured', 'gaussian' or 'calibrated', got 'gausian'
    """
    check_method(method)
    if rounds < 0:
        raise InputError(f"rounds must be 0 or a positive integer, got {rounds}")
    sizes = _other_sizes(sweep)
    check_level(level, method)
    derivation = _derive(sweep, method, sizes, rounds, level, images, hold_out, progress, on_round)
    return replace(derivation, law=with_origin(derivation.law, sweep, derivation.unreachable))


def _derive(
    sweep: Sweep,
    method: str,
    sizes: list[Size],
    rounds: int,
    level: Level,
    images: CaptionedImages | None,
    hold_out: bool,
    progress: bool | str,
    on_round: Callable[[Round], Any] | None,
) -> Derivation:
    """Derive a law; see `derive`."""
    if method == "calibrated":
        return _calibrated(sweep, layer_means(sweep.frame()), images, progress)
    used = _images_used(sweep.grid, hold_out)
    if method == "gaussian":
        return replace(_gaussian(_means(sweep, **used)), **used)
    refined = refine(sweep, sizes, rounds, **used, progress=progress, on_round=on_round, level=level)
    return replace(_measured(refined), **used)


def _images_used(grid: Grid, hold_out: bool) -> dict[str, Any]:
    """Return the prompts and seeds to derive laws from. The others are for judging them."""
    if not hold_out:
        return {"prompts": grid.prompts, "seeds": grid.seeds}
    return {"prompts": grid.prompts[: (len(grid.prompts) + 1) // 2], "seeds": grid.seeds[: (len(grid.seeds) + 1) // 2]}


def _means(sweep: Sweep, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> pd.DataFrame:
    frame = sweep.frame()
    return layer_means(frame[frame["prompt"].isin(prompts) & frame["seed"].isin(seeds)])


def check_method(method: str) -> None:
    """Raise InputError for an unknown method of `derive`.

    >>> check_method("gaussian")
    """
    if method not in DERIVED:
        known = ", ".join(map(repr, DERIVED[:-1]))
        raise InputError(f"method must be {known} or {DERIVED[-1]!r}, got {method!r}")


def check_level(level: str, method: str) -> None:
    """Raise InputError for an unknown level of `derive`, or one that the method does not have.

    >>> check_level("head", "measured")
    """
    if level not in get_args(Level):
        raise InputError(f"level must be {', '.join(get_args(Level))}, got {level!r:.100}")
    if level != "layer" and method != "measured":
        raise InputError(f"level {level!r} needs method 'measured', got {method!r}: use level 'layer'")


def derived_from(law: object) -> tuple[set[str], set[int]]:
    """Return the prompts and seeds that a derivation, or the JSON file of one, was derived from.

    >>> derived_from("paper")
    (set(), set())
    """
    if isinstance(law, str | Path) and is_file(law):
        with suppress(InputError):  # a law without a derivation
            law = Derivation.from_json(read_bounded(Path(law)))
    return (set(law.prompts), set(law.seeds)) if isinstance(law, Derivation) else (set(), set())


def _measured(refined: Refined) -> Derivation:
    """Return the measured law; see `refinement`. Only a law of layers has one kappa per layer."""
    law, kappa = refined.law, pd.DataFrame(columns=KAPPA_COLUMNS)
    if isinstance(law, Measured):
        kappa = refined.best.kappa()
        by_layer = kappa.set_index("layer")
        law = replace(law, kappa=by_layer["kappa"].to_dict(), kappa_se=by_layer["kappa_se"].to_dict())
    return Derivation(
        law, kappa, refined.rounds, refined.at_bounds(), refined.entropies(), factors=refined.best.factors()
    )


def _gaussian(means: pd.DataFrame) -> Derivation:
    """Derive the Gaussian law from the logit variance of each layer at the training size."""
    trained = means[means["tokens"] == means["training_tokens"]]
    variances = trained.groupby("layer", sort=False)["logit_variance"].mean()
    law = Gaussian({str(layer): float(variance) for layer, variance in variances.items()})
    kappas = {layer: 2 / variance for layer, variance in law.logit_variance.items()}
    return Derivation(law, _kappa_table(kappas, means), entropies=_entropies(means))


def _calibrated(sweep: Sweep, means: pd.DataFrame, images: CaptionedImages | None, progress: bool | str) -> Derivation:
    """Derive the calibrated law; see `calibration`."""
    if images is None:
        raise InputError("method 'calibrated' needs captioned real images: pass images=...")
    if sweep.pipeline is None:
        raise InputError("method 'calibrated' needs the pipeline: open the run with Sweep.open(path, pipeline)")
    calibration = calibrate(sweep.pipeline, images, sweep.grid.sizes, progress=progress)
    kappa = _kappa_table(calibration.law.kappa, means)
    return Derivation(calibration.law, kappa, entropies=_entropies(means), calibration=calibration)


def _kappa_table(kappas: Mapping[str, float], means: pd.DataFrame) -> pd.DataFrame:
    """Return the table `Derivation.kappa` of a law without standard errors."""
    trained = means.dropna(subset=["training_tokens"]).groupby("layer", sort=False)["training_tokens"].first()
    rows = [
        {
            "layer": layer,
            "kappa": kappas[layer] if layer in kappas else kappas.get(ALL_LAYERS, math.nan),
            **dict.fromkeys(("kappa_se", "low", "high"), math.nan),
            "paper": 1 / math.log(tokens) if tokens > 1 else math.nan,
        }
        for layer, tokens in trained.items()
    ]
    return pd.DataFrame(rows, columns=KAPPA_COLUMNS)


def _entropies(means: pd.DataFrame) -> pd.DataFrame:
    """Return the table `Derivation.entropies` of a law that was not sampled."""
    keys = ["layer", "tokens", "training_tokens"]
    table = means.groupby(keys, sort=False)["entropy"].mean().astype(float).rename("original").reset_index()
    at_training_size = table["tokens"] == table["training_tokens"]
    target = table[at_training_size].set_index("layer")["original"]
    table = table[~at_training_size].reset_index(drop=True)
    return table.assign(target=table["layer"].map(target), scaled=math.nan)[ENTROPY_COLUMNS]


def _other_sizes(sweep: Sweep) -> list[Size]:
    """Return the sizes whose token count differs from the training size: only these define a law in N.

    Raises:
        InputError: if the sweep lacks the training size, or a size with another token count.
    """
    height, width = sweep.manifest.training_size
    if (height, width) not in sweep.grid.sizes:
        raise InputError(f"the sweep lacks the training size {height}x{width}: add it to sizes")
    sizes = [size for size in sweep.grid.sizes if size[0] * size[1] != height * width]
    if not sizes:
        raise InputError(
            "every size of the sweep has the token count of the training size: add a size with another token count"
        )
    return sizes


def derive_measured(sweep: Sweep, **arguments: Any) -> Derivation:
    """Derive the measured law. Deprecated: use `derive(sweep)`."""
    warn_renamed("derive_measured(sweep)", "derive(sweep)")
    return derive(sweep, "measured", **arguments)


def derive_gaussian(sweep: Sweep) -> ScalingLaw:
    """Derive the Gaussian law. Deprecated: use `derive(sweep, "gaussian").law`."""
    warn_renamed("derive_gaussian(sweep)", "derive(sweep, 'gaussian').law")
    return derive(sweep, "gaussian").law
