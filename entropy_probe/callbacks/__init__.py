"""Watch the attention entropy of a model while it is trained: `EntropyMonitor`."""

from entropy_probe.callbacks.destinations import Destination, Log
from entropy_probe.callbacks.monitor import EntropyMonitor

__all__ = ["Destination", "EntropyMonitor", "Log"]
