"""Measure the attention entropy of diffusion models, derive the scaling factor each size needs, and see if it helps."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from entropy_probe.version import __version__

if TYPE_CHECKING:
    from entropy_probe import reference as reference
    from entropy_probe.capture import capture as capture
    from entropy_probe.errors import CaptureError as CaptureError
    from entropy_probe.errors import InputError as InputError
    from entropy_probe.fitting import derive as derive
    from entropy_probe.fitting import fit as fit
    from entropy_probe.laws import apply as apply
    from entropy_probe.laws import remove as remove
    from entropy_probe.laws import scaled as scaled
    from entropy_probe.pipelines import load as load
    from entropy_probe.report import explore as explore
    from entropy_probe.report import report as report
    from entropy_probe.sweep import Sweep as Sweep
    from entropy_probe.sweep import sweep as sweep
    from entropy_probe.validation import validate as validate

_HOMES = {
    "capture": "capture",
    "CaptureError": "errors",
    "InputError": "errors",
    "load": "pipelines",
    "scaled": "laws",
    "apply": "laws",
    "remove": "laws",
    "sweep": "sweep",
    "Sweep": "sweep",
    "fit": "fitting",
    "derive": "fitting",
    "validate": "validation",
    "report": "report",
    "explore": "report",
}
"""Public name -> the subpackage it comes from, imported on first use so that `import entropy_probe` stays quick."""

__all__ = ["__version__", "reference", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"entropy_probe.{_HOMES[name]}"), name)
    if name == "reference":
        return importlib.import_module("entropy_probe.reference")
    raise AttributeError(f"module 'entropy_probe' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps `ep.sweep` the function: importing the subpackage of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
