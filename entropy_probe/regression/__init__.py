"""Baselines of a model's entropy profile: has the attention of a model moved since one was kept?"""

from entropy_probe.regression.compare import LEVEL, Comparison, compare
from entropy_probe.regression.profile import Profile, Settings, profile, write_text
from entropy_probe.regression.views import figure, junit, markdown, text

__all__ = [
    "LEVEL",
    "Comparison",
    "Profile",
    "Settings",
    "compare",
    "figure",
    "junit",
    "markdown",
    "profile",
    "text",
    "write_text",
]
