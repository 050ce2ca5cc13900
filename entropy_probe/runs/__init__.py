"""Sampling a grid of prompts, sizes, seeds and laws into a run directory."""

from entropy_probe.runs.directory import RunDirectory
from entropy_probe.runs.engines import Engine, LocalEngine
from entropy_probe.runs.entropy_maps import EntropyMap, entropy_maps
from entropy_probe.runs.environment import versions
from entropy_probe.runs.files import check_file_name, open_location, write_atomically
from entropy_probe.runs.forecasting import Forecast, forecast
from entropy_probe.runs.grid import Cell, Grid, as_seeds, as_sizes, as_texts
from entropy_probe.runs.manifest import Manifest
from entropy_probe.runs.model_location import locate_model
from entropy_probe.runs.ray_engine import RayEngine
from entropy_probe.runs.sampling import FailedCell, SampledCell, sample_cells
from entropy_probe.runs.sweeping import CURVE_SCALE_FACTORS, NO_PROMPT, Sweep, extend, sweep

__all__ = [
    "CURVE_SCALE_FACTORS",
    "NO_PROMPT",
    "Cell",
    "Engine",
    "EntropyMap",
    "FailedCell",
    "Forecast",
    "Grid",
    "LocalEngine",
    "Manifest",
    "RayEngine",
    "RunDirectory",
    "SampledCell",
    "Sweep",
    "as_seeds",
    "as_sizes",
    "as_texts",
    "check_file_name",
    "entropy_maps",
    "extend",
    "forecast",
    "locate_model",
    "open_location",
    "sample_cells",
    "sweep",
    "versions",
    "write_atomically",
]
