"""Measured laws with one factor per head, or per head and noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from entropy_probe.errors import InputError
from entropy_probe.laws.formulas import interpolate
from entropy_probe.laws.layer_values import of_layer
from entropy_probe.laws.origin import Origin
from entropy_probe.laws.site import Site
from entropy_probe.views import Viewed

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Level = Annotated[float, Field(ge=0, le=1)]
_Points = tuple[tuple[_Finite, _Positive], ...]


@dataclass(frozen=True)
class MeasuredHeads(Viewed):
    """The g of each head at which its measured entropy at N tokens equals its entropy at T.

    Attributes:
        points: per layer and head, pairs (ln(N/T), g) in ascending order, interpolated as in `Measured`.
        origin: the model that it was derived on.

    >>> law = MeasuredHeads({"mid": (((math.log(4), 2.0),), ((math.log(4), 1.0),))})
    >>> law.factor_at(Site("mid", tokens=4096, training_tokens=1024, heads=2))
    (2.0, 1.0)
    """

    points: dict[str, tuple[_Points, ...]]
    origin: Origin | None = field(default=None, compare=False, repr=False)
    name: ClassVar[str] = "measured_head"

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        heads = self._heads(layer, tokens, training_tokens)
        return sum(heads) / len(heads)

    def factor_at(self, site: Site) -> tuple[float, ...]:
        return _checked(self._heads(site.layer, site.tokens, site.training_tokens), site, self.name)

    def _heads(self, layer: str, tokens: int, training_tokens: int) -> tuple[float, ...]:
        ratio = math.log(tokens / training_tokens)
        return tuple(interpolate(points, ratio) for points in of_layer(self.points, layer, self.name))


@dataclass(frozen=True)
class MeasuredSteps(Viewed):
    """The g of each head at each noise level at which its measured entropy at N tokens equals its entropy at T.

    Between the noise levels, ln g is interpolated linearly. Outside them, g is that of the nearest level.

    Attributes:
        noise_levels: in ascending order.
        points: per layer, noise level and head, pairs (ln(N/T), g) in ascending order.
        origin: the model that it was derived on.

    >>> law = MeasuredSteps((0.0, 1.0), {"mid": ((((math.log(4), 1.0),),), (((math.log(4), 4.0),),))})
    >>> [round(law.factor_at(Site("mid", 4096, 1024, noise_level=t))[0], 6) for t in (0.0, 0.5, 1.0)]
    [1.0, 2.0, 4.0]
    """

    noise_levels: Annotated[tuple[_Level, ...], Field(min_length=1)]
    points: dict[str, tuple[tuple[_Points, ...], ...]]
    origin: Origin | None = field(default=None, compare=False, repr=False)
    name: ClassVar[str] = "measured_step"
    changes_with_noise: ClassVar[bool] = True

    def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
        heads = self._heads(layer, tokens, training_tokens, 1.0)
        return sum(heads) / len(heads)

    def factor_at(self, site: Site) -> tuple[float, ...]:
        if site.noise_level is None:
            raise InputError(
                f"the {self.name} law needs the noise level, and the forward pass has no timestep: apply it to the "
                "pipeline, or pass a timestep to the denoiser"
            )
        heads = self._heads(site.layer, site.tokens, site.training_tokens, site.noise_level)
        return _checked(heads, site, self.name)

    def _heads(self, layer: str, tokens: int, training_tokens: int, noise_level: float) -> tuple[float, ...]:
        ratio = math.log(tokens / training_tokens)
        levels = of_layer(self.points, layer, self.name)
        logs = [[math.log(interpolate(points, ratio)) for points in heads] for heads in levels]
        return tuple(float(np.exp(np.interp(noise_level, self.noise_levels, head))) for head in zip(*logs, strict=True))


def _checked(heads: tuple[float, ...], site: Site, law: str) -> tuple[float, ...]:
    if len(heads) != site.heads:
        raise InputError(
            f"the {law} law has {len(heads)} heads for layer {site.layer!r}, which has {site.heads}: derive it on this "
            "model"
        )
    return heads
