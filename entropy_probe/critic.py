"""Old name of `entropy_probe.evaluation`. It works for one release and warns."""

from entropy_probe import evaluation
from entropy_probe.old_names import forward

__getattr__ = forward(__name__, evaluation)
