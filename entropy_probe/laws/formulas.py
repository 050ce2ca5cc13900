"""Scaling laws: by what factor g the logits of a layer with N tokens are multiplied, when it was trained with T.

All give g = 1 at N = T. Most are members of g^2 = 1 + kappa ln(N/T).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from pydantic import Field

from entropy_probe.errors import InputError
from entropy_probe.views import Viewed

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@runtime_checkable
class ScalingLaw(Protocol):
    """What a scaling law must know; any object with these two members serves."""

    @property
    def name(self) -> str: ...

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        """g of a layer: what its logits are multiplied by at `tokens` when `training_tokens` were trained."""
        ...


@dataclass(frozen=True)
class Original(Viewed):
    """g = 1: the model as it was trained."""

    name: ClassVar[str] = "original"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Paper(Viewed):
    """g = sqrt(ln N / ln T), that is kappa = 1 / ln T. Jin et al. 2023 (arXiv 2306.08645)."""

    name: ClassVar[str] = "paper"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return math.sqrt(math.log(tokens) / math.log(training_tokens)) if min(tokens, training_tokens) > 1 else 1.0


@dataclass(frozen=True)
class Log(Viewed):
    """g = ln N / ln T. Su 2021; Chiang and Cholak 2022 (arXiv 2202.12172)."""

    name: ClassVar[str] = "log"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return math.log(tokens) / math.log(training_tokens) if min(tokens, training_tokens) > 1 else 1.0


@dataclass(frozen=True)
class Yarn(Viewed):
    """g = (0.1 ln(N/T) + 1)^2 for N > T, else 1: YaRN's attention temperature, Peng et al. 2023 (arXiv 2309.00071)."""

    name: ClassVar[str] = "yarn"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return (0.1 * math.log(tokens / training_tokens) + 1) ** 2 if tokens > training_tokens else 1.0


@dataclass(frozen=True)
class Gaussian(Viewed):
    """g = sqrt(1 + 2 ln(N/T) / sigma2_T): keeps ln N - sigma2/2, the entropy of a row with Gaussian logits.

    Attributes:
        logit_variance: sigma2_T of every layer, nats^2, measured at the training size.
        floor: least g; a small image may ask for less than no attention at all.
    """

    logit_variance: dict[str, _Positive]
    floor: _Positive = 0.1
    name: ClassVar[str] = "gaussian"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        variance = _of_layer(self.logit_variance, layer, self.name)
        return _from_kappa(2 / variance, tokens, training_tokens, self.floor)


@dataclass(frozen=True)
class Measured(Viewed):
    """g at which a layer's measured entropy at N tokens equals the one at T, for the sizes that were measured.

    Between the measured sizes ln g is interpolated linearly in ln(N/T), through g = 1 at N = T; beyond them the last
    stretch goes on. `kappa` says it in one number per layer, g^2 = 1 + kappa ln(N/T), to compare with other laws.

    Attributes:
        points: per layer, pairs (ln(N/T), g) in ascending order.
        kappa: per layer, the fitted kappa.
        kappa_se: its standard error.
    """

    points: dict[str, tuple[tuple[_Finite, _Positive], ...]]
    kappa: dict[str, float] = field(default_factory=dict)
    kappa_se: dict[str, float] = field(default_factory=dict)
    name: ClassVar[str] = "measured"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        knots = sorted({*_of_layer(self.points, layer, self.name), (0.0, 1.0)})
        ratio = math.log(tokens / training_tokens)
        x = np.array([k[0] for k in knots])
        y = np.log([k[1] for k in knots])
        if len(knots) == 1:
            return 1.0
        if ratio < x[0]:
            return float(np.exp(y[0] + (ratio - x[0]) * (y[1] - y[0]) / (x[1] - x[0])))
        if ratio > x[-1]:
            return float(np.exp(y[-1] + (ratio - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])))
        return float(np.exp(np.interp(ratio, x, y)))


@dataclass(frozen=True)
class Calibrated(Measured):
    """g at which the denoising loss on real images is lowest, interpolated as `Measured` does.

    Attributes:
        points: per layer, or for all layers under the key `*`, pairs (ln(N/T), g) in ascending order.
        kappa: per layer or under `*`, the fitted kappa.
        kappa_se: its standard error.
    """

    name: ClassVar[str] = "calibrated"


@dataclass(frozen=True)
class Constant(Viewed):
    """One g whatever the size, for curves of something against g: an instrument, no law (g is not 1 at N = T).

    Attributes:
        value: g of the layers that a glob matches.
        layers: globs of layer names; the others keep g = 1.
    """

    value: _Finite
    layers: tuple[str, ...] = ("*",)
    name: ClassVar[str] = "constant"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return self.value if any(fnmatch(layer, glob) for glob in self.layers) else 1.0


@dataclass(frozen=True)
class Kappa(Viewed):
    """g^2 = 1 + kappa ln(N/T) with one kappa per layer, or one for all layers under the key `*`.

    Attributes:
        kappa: per layer.
        floor: least g.
    """

    kappa: dict[str, _Finite]
    floor: _Positive = 0.1

    @property
    def name(self) -> str:
        """`kappa`, or with its value where one serves all layers: a grid may hold several."""
        return f"kappa={self.kappa['*']:g}" if "*" in self.kappa else "kappa"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return _from_kappa(_of_layer(self.kappa, layer, self.name), tokens, training_tokens, self.floor)


_NAMED = (Original, Paper, Log, Yarn, Gaussian, Measured, Calibrated, Constant)
LAWS: dict[str, type[Any]] = {**{law.name: law for law in _NAMED}, "kappa": Kappa}
"""Every law by its name."""

NEEDS_NOTHING = tuple(name for name, law in LAWS.items() if not dataclasses.fields(law))
"""The laws that can be had by name alone; the others carry numbers."""

DERIVED = (Measured.name, Gaussian.name, Calibrated.name)
"""The laws whose numbers are derived from a sweep."""


def factors(
    law: ScalingLaw, ratios: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0), *, training_tokens: int = 1024
) -> pd.DataFrame:
    """What a law does: `layer`, `ratio` (N/T) and `scale_factor` (g), a row per layer that it names and ratio.

    Args:
        law: a scaling law; one that treats all layers alike is given under the layer `*`.
        ratios: values of N/T.
        training_tokens: T, on which `paper` and `log` depend besides.
    """
    numbers = [value for value in vars(law).values() if isinstance(value, dict) and value]
    names: Iterable[str] = law.layers if isinstance(law, Constant) else numbers[0] if numbers else ("*",)
    return pd.DataFrame(
        [
            (name, ratio, law.scale_factor(name, max(1, round(ratio * training_tokens)), training_tokens))
            for name in names
            for ratio in ratios
        ],
        columns=["layer", "ratio", "scale_factor"],
    )


def _from_kappa(kappa: float, tokens: int, training_tokens: int, floor: float) -> float:
    return math.sqrt(max(floor**2, 1 + kappa * math.log(tokens / training_tokens)))


def _of_layer(values: dict[str, Any], layer: str, law: str) -> Any:
    if "*" in values:
        return values["*"]
    try:
        return values[layer]
    except KeyError:
        raise InputError(f"the {law} law knows no layer {layer!r}: it was derived on another model") from None
