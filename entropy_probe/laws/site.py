"""What a law depends on: one attention layer in one forward pass.

A law has the method `scale_factor`, which depends on the layer, N and T. A law that depends on more, or that has one
factor per head, also has the method `factor_at`, which receives a `Site`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Factor = float | tuple[float, ...]
"""g: one number, or one number per head."""


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
class Site:
    """One attention layer in one forward pass.

    Attributes:
        layer: full name of the attention layer.
        tokens: number of image tokens now, N.
        training_tokens: number of image tokens at the training size, T.
        heads: number of heads.
        grid: rows and columns of tokens now; None if they are unknown.
        training_grid: rows and columns of tokens at the training size; None if they are unknown.
        noise_level: fraction of the sampling that remains, 1 for pure noise; None if it is unknown.
    """

    layer: str
    tokens: int
    training_tokens: int
    heads: int = 1
    grid: tuple[int, int] | None = None
    training_grid: tuple[int, int] | None = None
    noise_level: float | None = None


@runtime_checkable
class SiteLaw(ScalingLaw, Protocol):
    """A scaling law that depends on more than the layer, N and T, or that has one factor per head.

    Its `scale_factor` returns one number for tables and figures: the mean over heads, at pure noise.

    >>> class FirstHead:
    ...     name = "first-head"
    ...
    ...     def scale_factor(self, layer: str, tokens: int, training_tokens: int) -> float:
    ...         return 1.0
    ...
    ...     def factor_at(self, site: Site) -> Factor:
    ...         return (1.5, *[1.0] * (site.heads - 1))
    >>> factor_at(FirstHead(), Site("mid", 64, 16, heads=3))
    (1.5, 1.0, 1.0)
    """

    def factor_at(self, site: Site) -> Factor:
        """Return g at a site: one number, or one number per head."""
        ...


def factor_at(law: ScalingLaw, site: Site) -> Factor:
    """Return the g of any law at a site.

    >>> from entropy_probe.laws import Paper
    >>> print(f"{factor_at(Paper(), Site('mid', tokens=4096, training_tokens=1024)):.4f}")
    1.0954
    """
    at_site: Callable[[Site], Factor] | None = getattr(law, "factor_at", None)
    if at_site is not None:  # an isinstance with a protocol takes longer than all else in this function
        return at_site(site)
    return law.scale_factor(site.layer, site.tokens, site.training_tokens)


def changes_with_noise(law: ScalingLaw) -> bool:
    """Return whether g changes during the sampling. A law says so with an attribute `changes_with_noise`.

    >>> from entropy_probe.laws import Paper, TimeYarn
    >>> changes_with_noise(Paper()), changes_with_noise(TimeYarn())
    (False, True)
    """
    return bool(getattr(law, "changes_with_noise", False))
