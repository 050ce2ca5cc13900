"""Where the models and prompts that come along lie."""

from pathlib import Path


def bundled(name: str) -> Path:
    """A file or folder of `data/`: part of an installed package, beside the package in a clone."""
    package = Path(__file__).parent
    inside = package / "data"
    return (inside if inside.exists() else package.parent / "data") / name
