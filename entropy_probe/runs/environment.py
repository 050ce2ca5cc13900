"""Versions and hardware that influence the last digits of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

from entropy_probe.statistics.cpu import KERNELS
from entropy_probe.version import __version__


def versions() -> dict[str, str]:
    """Return the versions of entropy-probe, Python, the sampling libraries and the compiled CPU kernel.

    >>> sorted(versions())
    ['CPU kernel', 'diffusers', 'entropy-probe', 'python', 'torch', 'transformers']
    """
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    kernel = {"CPU kernel": " and ".join(name.lstrip("_") for name in KERNELS) or "none"}
    return {"entropy-probe": __version__, "python": platform.python_version(), **libraries, **kernel}


def hardware() -> str:
    """Return the name of the GPU, or a description of the CPU."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
