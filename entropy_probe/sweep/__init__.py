"""The grid of prompts, sizes, seeds and laws, sampling it, and the store on disk."""

from entropy_probe.sweep.grid import Cell, Grid
from entropy_probe.sweep.run import CURVE, Sweep, extend, sweep, versions
from entropy_probe.sweep.store import Manifest, RunDirectory, write_atomically

__all__ = [
    "CURVE",
    "Cell",
    "Grid",
    "Manifest",
    "RunDirectory",
    "Sweep",
    "extend",
    "sweep",
    "versions",
    "write_atomically",
]
