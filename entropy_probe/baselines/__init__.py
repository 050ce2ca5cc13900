"""Save the entropy profile of a model as a baseline, and test whether the model has changed since."""

from __future__ import annotations

from typing import Any

from entropy_probe.baselines.comparison import LEVEL, ProfileComparison, compare
from entropy_probe.baselines.output import junit, markdown, text
from entropy_probe.baselines.profiles import Profile, Settings, profile, write_text

__all__ = [
    "LEVEL",
    "Profile",
    "ProfileComparison",
    "Settings",
    "compare",
    "junit",
    "markdown",
    "profile",
    "text",
    "write_text",
]


def __getattr__(name: str) -> Any:
    """Return names of version 0.1 with a warning."""
    if name == "Comparison":
        import warnings

        warnings.warn("baselines.Comparison is deprecated: use ProfileComparison", DeprecationWarning, stacklevel=2)
        return ProfileComparison
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
