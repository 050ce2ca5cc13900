"""Old names of packages, and of functions and classes in them. They work for one release and warn."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from entropy_probe.deprecation import warn_renamed

PACKAGES = {
    "critic": "evaluation",
    "fitting": "estimation",
    "pipelines": "models",
    "regression": "baselines",
    "validation": "evaluation",
}
"""Packages of 0.1.0 and the packages that replace them. CHANGELOG.md lists the packages that were removed."""

RENAMED = {
    "critic.load": "evaluation.load_critic",
    "pipelines.PictureFolder": "models.ImageFolder",
    "pipelines.Pictures": "models.CaptionedImages",
    "pipelines.draw": "models.sample_images",
    "regression.Comparison": "baselines.ProfileComparison",
    "regression.figure": "plots.baselines.figure",
    "validation.Comparison": "evaluation.MetricDifference",
    "validation.Judge": "evaluation.Scorer",
    "validation.judge_for": "evaluation.load_scorer",
}
"""Names that changed in addition to their package."""


def forward(old: str, *homes: ModuleType) -> Callable[[str], Any]:
    """Return the `__getattr__` of an old package. It finds the new objects, and warns with their new names.

    Args:
        old: `__name__` of the old package.
        homes: modules that the new objects are in.

    Examples:
        >>> from entropy_probe import models
        >>> lookup = forward("entropy_probe.pipelines", models)
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     lookup("draw").__name__
        'sample_images'
        >>> print(caught[0].message)
        entropy_probe.pipelines.draw is deprecated: use entropy_probe.models.sample_images
    """
    package = old.rpartition(".")[2]
    modules = {home.__name__: home for home in homes}

    def lookup(name: str) -> Any:
        new = RENAMED.get(f"{package}.{name}", f"{PACKAGES[package]}.{name}")
        module, _, attribute = f"entropy_probe.{new}".rpartition(".")
        if name.startswith("_") or not hasattr(modules[module], attribute):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        warn_renamed(f"{old}.{name}", f"{module}.{attribute}")
        return getattr(modules[module], attribute)

    return lookup
