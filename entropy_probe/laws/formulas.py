"""Scaling laws: formulas for the factor g that multiplies the logits of a layer.

N is the number of image tokens of the layer now, T the number at the training size. All laws except `constant` have
g = 1 at N = T. Many have the form g^2 = 1 + kappa ln(N/T).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from entropy_probe.laws.layer_values import logarithm_ratio, of_layer
from entropy_probe.laws.origin import Origin
from entropy_probe.views import Viewed

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NullIsNaN = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that JSON stores as null if it is NaN."""


@dataclass(frozen=True)
class Original(Viewed):
    """g = 1: the model without scaling.

    >>> Original().scale_factor("mid", tokens=4096, training_tokens=1024)
    1.0
    """

    name: ClassVar[str] = "original"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Paper(Viewed):
    """g = sqrt(ln N / ln T), which is the form above with kappa = 1 / ln T. Jin et al. 2023 (arXiv 2306.08645).

    >>> print(f"{Paper().scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.0954
    """

    name: ClassVar[str] = "paper"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return math.sqrt(logarithm_ratio(tokens, training_tokens))


@dataclass(frozen=True)
class Log(Viewed):
    """g = ln N / ln T. Su 2021; Chiang and Cholak 2022 (arXiv 2202.12172).

    >>> print(f"{Log().scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.2000
    """

    name: ClassVar[str] = "log"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return logarithm_ratio(tokens, training_tokens)


@dataclass(frozen=True)
class Gaussian(Viewed):
    """g = sqrt(1 + 2 ln(N/T) / sigma2_T): keeps ln N - sigma2/2, the entropy of a row with Gaussian logits.

    Attributes:
        logit_variance: sigma2_T of every layer, nats^2, measured at the training size.
        floor: minimum g. Without it, g^2 would be negative for small images.
        origin: the model that it was derived on.

    >>> law = Gaussian({"mid": 4.0})
    >>> print(f"{law.scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.3012
    """

    logit_variance: dict[str, _Positive]
    floor: _Positive = 0.1
    origin: Origin | None = field(default=None, compare=False, repr=False)
    name: ClassVar[str] = "gaussian"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        variance = of_layer(self.logit_variance, layer, self.name)
        return _from_kappa(2 / variance, tokens, training_tokens, self.floor)


@dataclass(frozen=True)
class Measured(Viewed):
    """The g of each layer at which its measured entropy at N tokens equals its entropy at T.

    Between the measured sizes, ln g is interpolated linearly in ln(N/T), with g = 1 at N = T. Beyond them, the nearest
    line segment is extended. `kappa` summarises the points in one number per layer, g^2 = 1 + kappa ln(N/T), to compare
    with other laws; it is not used to compute g, and laws with the same points are equal.

    Attributes:
        points: per layer, pairs (ln(N/T), g) in ascending order.
        kappa: per layer, the fitted kappa.
        kappa_se: its standard error.
        origin: the model that it was derived on.

    >>> law = Measured({"mid": ((math.log(4), 2.0),)})
    >>> print(f"{law.scale_factor('mid', tokens=2048, training_tokens=1024):.4f}")
    1.4142
    """

    points: dict[str, tuple[tuple[_Finite, _Positive], ...]]
    kappa: dict[str, _NullIsNaN] = field(default_factory=dict, compare=False)
    kappa_se: dict[str, _NullIsNaN] = field(default_factory=dict, compare=False)
    origin: Origin | None = field(default=None, compare=False, repr=False)
    name: ClassVar[str] = "measured"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return interpolate(of_layer(self.points, layer, self.name), math.log(tokens / training_tokens))


@dataclass(frozen=True)
class Calibrated(Measured):
    """The g at which the denoising loss on real images is lowest, interpolated as in `Measured`.

    Attributes:
        points: per layer, or for all layers under the key `*`, pairs (ln(N/T), g) in ascending order.
        kappa: per layer or under `*`, the fitted kappa.
        kappa_se: its standard error.

    >>> law = Calibrated({"*": ((math.log(4), 1.5),)})
    >>> print(f"{law.scale_factor('any layer', tokens=4096, training_tokens=1024):.4f}")
    1.5000
    """

    name: ClassVar[str] = "calibrated"


@dataclass(frozen=True)
class Constant(Viewed):
    """The same g at every size, to measure curves against g. Unlike the other laws, g is not 1 at N = T.

    Attributes:
        value: g of the layers that match a pattern.
        layers: patterns of layer names, with the wildcards of `fnmatch`. All other layers have g = 1.

    >>> law = Constant(1.5, layers=("up_blocks.*",))
    >>> law.scale_factor("up_blocks.0", tokens=64, training_tokens=64)
    1.5
    >>> law.scale_factor("mid", tokens=64, training_tokens=64)
    1.0
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
        floor: minimum g.

    >>> law = Kappa({"*": 0.5})
    >>> print(law.name, f"{law.scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    kappa=0.5 1.3012
    """

    kappa: dict[str, _Finite]
    floor: _Positive = 0.1

    @property
    def name(self) -> str:
        """Return `kappa`, followed by the value if all layers share one: a grid may contain several such laws."""
        return f"kappa={self.kappa['*']:g}" if "*" in self.kappa else "kappa"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return _from_kappa(of_layer(self.kappa, layer, self.name), tokens, training_tokens, self.floor)


def _from_kappa(kappa: float, tokens: int, training_tokens: int, floor: float) -> float:
    return max(floor, math.sqrt(max(0.0, 1 + kappa * math.log(tokens / training_tokens))))


def interpolate(points: Sequence[tuple[float, float]], ratio: float) -> float:
    """Return g at ln(N/T): ln g is linear between the points and (0, 1), and the outer segments are extended.

    >>> interpolate([(1.0, 4.0)], 0.5)
    2.0
    """
    knots = sorted({*points, (0.0, 1.0)})
    x = np.array([k[0] for k in knots])
    y = np.log([k[1] for k in knots])
    if len(knots) == 1:
        return 1.0
    if ratio < x[0]:
        return float(np.exp(y[0] + (ratio - x[0]) * (y[1] - y[0]) / (x[1] - x[0])))
    if ratio > x[-1]:
        return float(np.exp(y[-1] + (ratio - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])))
    return float(np.exp(np.interp(ratio, x, y)))
