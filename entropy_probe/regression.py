"""Old name of `entropy_probe.baselines`. It works for one release and warns."""

from entropy_probe import baselines
from entropy_probe.old_names import forward
from entropy_probe.plots import baselines as baseline_plots

__getattr__ = forward(__name__, baselines, baseline_plots)
