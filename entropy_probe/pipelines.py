"""Old name of `entropy_probe.models`. It works for one release and warns."""

from entropy_probe import models
from entropy_probe.old_names import forward

__getattr__ = forward(__name__, models)
