"""Scaling laws of other methods, to compare with.

Their papers and programs use them together with other changes, such as scaled rotary embeddings. Here they are the
factor g alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pandas as pd
from pydantic import Field

from entropy_probe.errors import InputError
from entropy_probe.laws.layer_values import logarithm_ratio, of_layer
from entropy_probe.laws.site import Factor, Site
from entropy_probe.views import Viewed

Ratio = Literal["tokens", "side"]
"""s of YaRN: N/T, as for texts, or its square root, the ratio of the image sides."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class LogPower(Viewed):
    """g = (ln N / ln T)^p. p = 1/2 is `paper`, and p = 1 is `log`; arXiv 2605.12697 discusses p up to 2.

    Attributes:
        power: p.

    >>> print(f"{LogPower(2.0).scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.4400
    """

    power: _Finite

    @property
    def name(self) -> str:
        """Return `log_power=` and p. `resolve` accepts this name."""
        return f"log_power={self.power:g}"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return float(logarithm_ratio(tokens, training_tokens) ** self.power)


@dataclass(frozen=True)
class Pippo(Viewed):
    """g = sqrt(gamma ln N / ln T). Unlike other laws, g is not 1 at N = T. From Pippo, Kant et al. 2025.

    Attributes:
        gamma: the authors use 1.4 to 1.6.

    >>> print(f"{Pippo(1.4).scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.2961
    """

    gamma: _Positive

    @property
    def name(self) -> str:
        """Return `pippo=` and gamma. `resolve` accepts this name."""
        return f"pippo={self.gamma:g}"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return math.sqrt(self.gamma * logarithm_ratio(tokens, training_tokens))


@dataclass(frozen=True)
class Yarn(Viewed):
    """g = (0.1 ln s + 1)^2 for s > 1, else 1. From YaRN, Peng et al. 2023 (arXiv 2309.00071).

    Attributes:
        ratio: `tokens` for s = N/T, as in language models; `side` for s = sqrt(N/T), as programs for images have it.

    >>> print(f"{Yarn().scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.2965
    >>> print(f"{Yarn('side').scale_factor('mid', tokens=4096, training_tokens=1024):.4f}")
    1.1434
    """

    ratio: Ratio = "tokens"

    @property
    def name(self) -> str:
        """Return `yarn` or `yarn-side`."""
        return "yarn" if self.ratio == "tokens" else "yarn-side"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return (0.1 * _log_ratio(tokens, training_tokens, self.ratio) + 1) ** 2


@dataclass(frozen=True)
class TimeYarn(Viewed):
    """g = (1 + 0.1 ln(s) (t/t0)^e)^2: YaRN's factor, which fades as the noise level t falls. After ComfyUI-DyPE.

    Attributes:
        exponent: e. With 0, the law is `yarn`.
        start: t0, the noise level below which g falls; above it, g is that of `yarn`.
        ratio: as in `Yarn`.

    >>> law = TimeYarn()
    >>> [round(law.factor_at(Site("mid", 4096, 1024, noise_level=t)), 4) for t in (1.0, 0.5, 0.0)]
    [1.1434, 1.035, 1.0]
    """

    exponent: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    start: Annotated[float, Field(gt=0, le=1)] = 1.0
    ratio: Ratio = "side"
    name: ClassVar[str] = "time_yarn"
    changes_with_noise: ClassVar[bool] = True

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        return self.factor_at(Site(layer, tokens, training_tokens, noise_level=1.0))

    def factor_at(self, site: Site) -> float:
        if site.noise_level is None:
            raise InputError(
                f"the {self.name} law needs the noise level, and the forward pass has no timestep: apply it to the "
                "pipeline, or pass a timestep to the denoiser"
            )
        fade = min(1.0, site.noise_level / self.start) ** self.exponent
        return float((1 + 0.1 * _log_ratio(site.tokens, site.training_tokens, self.ratio) * fade) ** 2)


@dataclass(frozen=True)
class HeadEntropy(Viewed):
    """Per head, g = g_min + (g_max - g_min) (1 - z)^gamma for N > T, else 1. After UltraImage (arXiv 2512.04504).

    Heads with a low entropy attend locally and get a large factor.

    Attributes:
        entropy: z of each head of each layer: its entropy at the training size, divided by its maximum ln(keys).
        g_min: factor of a head with uniform attention.
        g_max: factor of a head that attends to one token.
        gamma: exponent.

    >>> law = HeadEntropy({"mid": (0.0, 1.0)}, g_min=1.0, g_max=1.5)
    >>> law.factor_at(Site("mid", tokens=4096, training_tokens=1024, heads=2))
    (1.5, 1.0)
    """

    entropy: dict[str, tuple[_Fraction, ...]]
    g_min: _Positive
    g_max: _Positive
    gamma: _Positive = 1.0
    name: ClassVar[str] = "head_entropy"

    @classmethod
    def measured(cls, table: pd.DataFrame, *, g_min: float, g_max: float, gamma: float = 1.0) -> HeadEntropy:
        """Return the law with the entropies of a table: of a `capture` or of `Sweep.frame` at the training size.

        Args:
            table: with the columns `layer`, `head`, `kind`, `entropy` and `key_tokens`.
            g_min: see the class.
            g_max: see the class.
            gamma: see the class.
        """
        own = table[table["kind"].isin(["self", "joint", "shared"])]
        z = (own["entropy"] / own["key_tokens"].map(math.log)).clip(0.0, 1.0)
        means = z.groupby([own["layer"], own["head"]], sort=True).mean()
        entropy = {str(layer): tuple(map(float, heads)) for layer, heads in means.groupby(level=0)}
        return cls(entropy, g_min, g_max, gamma)

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        factors = self._factors(layer, tokens, training_tokens)
        return sum(factors) / len(factors)

    def factor_at(self, site: Site) -> Factor:
        factors = self._factors(site.layer, site.tokens, site.training_tokens)
        if len(factors) != site.heads:
            raise InputError(
                f"the {self.name} law has {len(factors)} heads for layer {site.layer!r}, which has {site.heads}: "
                "measure the entropies on this model"
            )
        return factors

    def _factors(self, layer: str, tokens: int, training_tokens: int) -> tuple[float, ...]:
        values = of_layer(self.entropy, layer, self.name)
        if tokens <= training_tokens:
            return (1.0,) * len(values)
        return tuple(self.g_min + (self.g_max - self.g_min) * (1 - z) ** self.gamma for z in values)


def _log_ratio(tokens: int, training_tokens: int, ratio: Ratio) -> float:
    """Return ln s, at least 0."""
    return max(0.0, math.log(tokens / training_tokens)) * (1.0 if ratio == "tokens" else 0.5)
