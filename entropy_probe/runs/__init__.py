"""The grid of prompts, sizes, seeds and laws, sampling it, and the store on disk."""

from entropy_probe.runs.directory import Manifest, RunDirectory
from entropy_probe.runs.engines import Engine, LocalEngine, RayEngine
from entropy_probe.runs.entropy_maps import EntropyMap, entropy_maps
from entropy_probe.runs.files import place, write_atomically
from entropy_probe.runs.forecasting import Forecast, forecast
from entropy_probe.runs.grid import Cell, Grid, as_sizes, as_texts
from entropy_probe.runs.sampling import Failed, Sampled, sample_cells
from entropy_probe.runs.sweeping import CURVE, Sweep, extend, sweep, versions

__all__ = [
    "CURVE",
    "Cell",
    "Engine",
    "EntropyMap",
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
    "entropy_maps",
    "extend",
    "forecast",
    "place",
    "sample_cells",
    "sweep",
    "versions",
    "write_atomically",
]
