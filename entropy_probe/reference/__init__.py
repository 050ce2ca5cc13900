"""The bundled models, their training images and their prompts."""

from __future__ import annotations

from typing import Any

from entropy_probe.bundled import bundled
from entropy_probe.deprecation import renamed_names
from entropy_probe.extras import check_installed
from entropy_probe.models import REFERENCE
from entropy_probe.models import load as load_pipeline
from entropy_probe.reference.drawings import Drawings


def load(name: str = REFERENCE, *, device: str = "auto", dtype: str = "auto") -> Any:
    """Load a bundled pipeline. It was trained at 64 x 64 pixels on captioned emoji.

    `reference-dit` is a PixArt pipeline. If you call it directly, set `use_resolution_binning=False`, or diffusers
    samples the nearest size of a fixed list.

    Args:
        name: `reference` with a UNet, or `reference-dit` with a transformer.
        device: see `models.load`.
        dtype: see `models.load`.

    >>> type(load("reference", device="cpu")).__name__
    'StableDiffusionPipeline'
    """
    return load_pipeline(name, device=device, dtype=dtype)


def images() -> Drawings:
    """Return the training images of the bundled pipelines. They are vector images and can be drawn at any size.

    Raises:
        MissingLibraryError: if the extra `validate`, which draws them, or the bundled models are not installed.

    >>> images()[:2].at((64, 64)).shape
    torch.Size([2, 3, 64, 64])
    """
    check_installed("validate")
    return Drawings.open(bundled(REFERENCE) / "drawings.json.gz")


def prompts() -> list[str]:
    """Return the bundled prompts. The prompts at the start give the most recognisable images.

    >>> prompts()[0]
    'noto red apple'
    """
    text = bundled("prompts.txt").read_text()
    return [line for line in text.splitlines() if line]


__getattr__ = renamed_names(__name__, pictures=images)
