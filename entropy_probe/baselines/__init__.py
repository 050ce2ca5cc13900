"""Baselines of a model's entropy profile: has the attention of a model moved since one was kept?"""

from entropy_probe.baselines.comparison import LEVEL, Comparison, compare
from entropy_probe.baselines.output import junit, markdown, text
from entropy_probe.baselines.profiles import Profile, Settings, profile, write_text

__all__ = [
    "LEVEL",
    "Comparison",
    "Profile",
    "Settings",
    "compare",
    "junit",
    "markdown",
    "profile",
    "text",
    "write_text",
]
