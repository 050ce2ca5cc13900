"""Find the bundled models and prompts."""

from importlib.resources import files
from pathlib import Path

from entropy_probe.errors import MissingLibraryError


def bundled(name: str) -> Path:
    """Return the path of a file or folder in `data/`.

    In a clone, this folder is next to the package. An installed package contains the prompts, and the distribution
    entropy-probe-models contains the models.

    Raises:
        MissingLibraryError: if it is not installed.

    >>> bundled("prompts.txt").is_file()
    True
    """
    package = Path(__file__).parent
    for folder in (package / "data", package.parent / "data"):
        if (folder / name).exists():
            return folder / name
    try:
        return Path(str(files("entropy_probe_models") / name))
    except ModuleNotFoundError as error:
        raise MissingLibraryError(
            f"{name!r} is not installed: pip install entropy-probe-models, or pip install ./data in a clone"
        ) from error
