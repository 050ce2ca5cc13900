"""Find the bundled models and prompts."""

from pathlib import Path


def bundled(name: str) -> Path:
    """Return the path of a file or folder in `data/`.

    An installed package contains this folder. In a clone it is next to the package.

    >>> bundled("prompts.txt").is_file()
    True
    """
    package = Path(__file__).parent
    inside = package / "data"
    return (inside if inside.exists() else package.parent / "data") / name
