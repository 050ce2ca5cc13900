"""Measure the attention entropy of diffusion models, derive the scale factor each image size needs, and validate it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entropy_probe import views
from entropy_probe.version import __version__

if TYPE_CHECKING:
    from entropy_probe import callbacks as callbacks
    from entropy_probe import laws as laws
    from entropy_probe import reference as reference
    from entropy_probe.attention import capture as capture
    from entropy_probe.callbacks import EntropyMonitor as EntropyMonitor
    from entropy_probe.errors import CaptureError as CaptureError
    from entropy_probe.errors import InputError as InputError
    from entropy_probe.estimation import derive as derive
    from entropy_probe.estimation import fit as fit
    from entropy_probe.evaluation import loss as loss
    from entropy_probe.evaluation import validate as validate
    from entropy_probe.laws import apply as apply
    from entropy_probe.laws import export as export
    from entropy_probe.laws import remove as remove
    from entropy_probe.laws import save_law as save_law
    from entropy_probe.laws import scaled as scaled
    from entropy_probe.models import load as load
    from entropy_probe.reports import compare as compare
    from entropy_probe.reports import explore as explore
    from entropy_probe.reports import report as report
    from entropy_probe.runs import Sweep as Sweep
    from entropy_probe.runs import sweep as sweep

__all__ = [
    "CaptureError",
    "EntropyMonitor",
    "InputError",
    "Sweep",
    "__version__",
    "apply",
    "callbacks",
    "capture",
    "compare",
    "derive",
    "explore",
    "export",
    "fit",
    "laws",
    "load",
    "loss",
    "reference",
    "remove",
    "report",
    "save_law",
    "scaled",
    "sweep",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import entropy_probe` loads neither torch nor matplotlib."""
    home: Any
    match name:
        case "capture":
            from entropy_probe import attention as home
        case "EntropyMonitor":
            from entropy_probe import callbacks as home
        case "CaptureError" | "InputError":
            from entropy_probe import errors as home
        case "load":
            from entropy_probe import models as home
        case "apply" | "export" | "remove" | "save_law" | "scaled":
            from entropy_probe import laws as home
        case "sweep" | "Sweep":
            from entropy_probe import runs as home
        case "fit" | "derive":
            from entropy_probe import estimation as home
        case "loss" | "validate":
            from entropy_probe import evaluation as home
        case "compare" | "explore" | "report":
            from entropy_probe import reports as home
        case "callbacks":
            import entropy_probe.callbacks as callbacks_package

            return callbacks_package
        case "laws":
            import entropy_probe.laws as laws_package

            return laws_package
        case "reference":
            import entropy_probe.reference as reference_package

            return reference_package
        case _:
            raise AttributeError(f"module 'entropy_probe' has no attribute {name!r}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _plots() -> Any:
    from entropy_probe.plots import views as plot_views

    return plot_views


views.register(_plots)
