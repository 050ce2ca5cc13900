"""Old name of `entropy_probe.estimation`. It works for one release and warns."""

from entropy_probe import estimation
from entropy_probe.old_names import forward

__getattr__ = forward(__name__, estimation)
