"""Save the entropy profile of a model as a baseline, and test whether the model has changed since."""

from entropy_probe.baselines.comparison import LEVEL, ProfileComparison, compare
from entropy_probe.baselines.output import junit, markdown, text
from entropy_probe.baselines.profiles import PROMPTS, Profile, Settings, profile, write_text
from entropy_probe.deprecation import renamed_names

__all__ = [
    "LEVEL",
    "PROMPTS",
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

__getattr__ = renamed_names(__name__, Comparison=ProfileComparison)
