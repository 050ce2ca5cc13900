"""Scaling laws: formulas for the factor g that multiplies the logits of a layer.

N is the number of image tokens of the layer now, T the number at the training size. All laws except `constant` have
g = 1 at N = T. Many have the form g^2 = 1 + kappa ln(N/T).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from pydantic import BeforeValidator, Field

from entropy_probe.errors import InputError
from entropy_probe.views import Viewed

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NullIsNaN = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that JSON stores as null if it is NaN."""


@runtime_checkable
class ScalingLaw(Protocol):
    """A scaling law: any object with these two members.

    >>> class Root:
    ...     name = "root"
    ...
    ...     def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
    ...         return (tokens / training_tokens) ** 0.1
    >>> isinstance(Root(), ScalingLaw)
    True
    """

    @property
    def name(self) -> str: ...

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        """Return g, the factor that multiplies the logits of a layer.

        Args:
            layer: full name of the attention layer.
            tokens: number of image tokens now, N.
            training_tokens: number of image tokens at the training size, T.
        """
        ...


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
        return math.sqrt(math.log(tokens) / math.log(training_tokens)) if min(tokens, training_tokens) > 1 else 1.0


@dataclass(frozen=True)
class Log(Viewed):
    """g = ln N / ln T. Su 2021; Chiang and Cholak 2022 (arXiv 2202.12172).

    >>> print(f"{Log().scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.2000
    """

    name: ClassVar[str] = "log"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return math.log(tokens) / math.log(training_tokens) if min(tokens, training_tokens) > 1 else 1.0


@dataclass(frozen=True)
class Yarn(Viewed):
    """g = (0.1 ln(N/T) + 1)^2 for N > T, else 1. From YaRN, Peng et al. 2023 (arXiv 2309.00071).

    >>> print(f"{Yarn().scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.2965
    """

    name: ClassVar[str] = "yarn"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return (0.1 * math.log(tokens / training_tokens) + 1) ** 2 if tokens > training_tokens else 1.0


@dataclass(frozen=True)
class Gaussian(Viewed):
    """g = sqrt(1 + 2 ln(N/T) / sigma2_T): keeps ln N - sigma2/2, the entropy of a row with Gaussian logits.

    Attributes:
        logit_variance: sigma2_T of every layer, nats^2, measured at the training size.
        floor: minimum g. Without it, g^2 would be negative for small images.

    >>> law = Gaussian({"mid": 4.0})
    >>> print(f"{law.scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.3012
    """

    logit_variance: dict[str, _Positive]
    floor: _Positive = 0.1
    name: ClassVar[str] = "gaussian"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        variance = _of_layer(self.logit_variance, layer, self.name)
        return _from_kappa(2 / variance, tokens, training_tokens, self.floor)


@dataclass(frozen=True)
class Measured(Viewed):
    """The g of each layer at which its measured entropy at N tokens equals its entropy at T.

    Between the measured sizes, ln g is interpolated linearly in ln(N/T), with g = 1 at N = T. Beyond them, the nearest
    line segment is extended. `kappa` summarises the points in one number per layer, g^2 = 1 + kappa ln(N/T), to compare
    with other laws; it is not used to compute g.

    Attributes:
        points: per layer, pairs (ln(N/T), g) in ascending order.
        kappa: per layer, the fitted kappa.
        kappa_se: its standard error.

    >>> law = Measured({"mid": ((math.log(4), 2.0),)})
    >>> print(f"{law.scale_factor('mid', tokens=2048, training_tokens=1024):.4f}")
    1.4142
    """

    points: dict[str, tuple[tuple[_Finite, _Positive], ...]]
    kappa: dict[str, _NullIsNaN] = field(default_factory=dict)
    kappa_se: dict[str, _NullIsNaN] = field(default_factory=dict)
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
        return _from_kappa(_of_layer(self.kappa, layer, self.name), tokens, training_tokens, self.floor)


_NAMED = (Original, Paper, Log, Yarn, Gaussian, Measured, Calibrated, Constant)
LAWS: dict[str, type[Any]] = {**{law.name: law for law in _NAMED}, "kappa": Kappa}
"""The class of every law by its name."""

NEEDS_NOTHING = tuple(name for name, law in LAWS.items() if not dataclasses.fields(law))
"""The laws that need only a name. All others contain numbers."""

DERIVED = (Measured.name, Gaussian.name, Calibrated.name)
"""The laws with numbers that `derive` computes from a sweep."""


def own_law(law: ScalingLaw) -> ScalingLaw:
    """Return the law of a derivation, or the law itself."""
    inner = getattr(law, "law", None)
    return inner if isinstance(inner, ScalingLaw) else law


def _from_kappa(kappa: float, tokens: int, training_tokens: int, floor: float) -> float:
    return max(floor, math.sqrt(max(0.0, 1 + kappa * math.log(tokens / training_tokens))))


def _of_layer(values: dict[str, Any], layer: str, law: str) -> Any:
    if "*" in values:
        return values["*"]
    try:
        return values[layer]
    except KeyError:
        known = ", ".join(list(values)[:3]) or "none"
        raise InputError(
            f"the {law} law has no factor for layer {layer!r} (its layers: {known}, ...): it was derived on another "
            "model; derive it on this one"
        ) from None
