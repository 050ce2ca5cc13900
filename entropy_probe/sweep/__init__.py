"""The grid of prompts, sizes, seeds and laws, sampling it, and the store on disk."""

from entropy_probe.sweep.engines import Engine, LocalEngine, RayEngine
from entropy_probe.sweep.files import place, write_atomically
from entropy_probe.sweep.forecast import Forecast, forecast
from entropy_probe.sweep.grid import Cell, Grid, as_sizes, as_texts
from entropy_probe.sweep.run import CURVE, Sweep, extend, sweep, versions
from entropy_probe.sweep.sample import Failed, Sampled, sample_cells
from entropy_probe.sweep.store import Manifest, RunDirectory

__all__ = [
    "CURVE",
    "Cell",
    "Engine",
    "Failed",
    "Forecast",
    "Grid",
    "LocalEngine",
    "Manifest",
    "RayEngine",
    "RunDirectory",
    "Sampled",
    "Sweep",
    "as_sizes",
    "as_texts",
    "extend",
    "forecast",
    "place",
    "sample_cells",
    "sweep",
    "versions",
    "write_atomically",
]
