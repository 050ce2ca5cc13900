"""The bundled reference pipelines and the drawings that they learnt, and the recipes that trained them."""

from __future__ import annotations

from typing import Any

from entropy_probe.bundled import bundled
from entropy_probe.models import REFERENCE
from entropy_probe.models import load as load_pipeline
from entropy_probe.reference.drawings import Drawings


def load(name: str = REFERENCE, *, device: str = "auto", dtype: str = "auto") -> Any:
    """A bundled pipeline, trained at 64 x 64 pixels on captioned emoji.

    `reference-dit` is one of PixArt's: called by itself, it draws sizes as they are asked only with
    `use_resolution_binning=False`, as all PixArt pipelines of diffusers do.

    Args:
        name: `reference`, with a UNet, or `reference-dit`, with a transformer.
        device: see `pipelines.load`.
        dtype: see `pipelines.load`.
    """
    return load_pipeline(name, device=device, dtype=dtype)


def images() -> Drawings:
    """The drawings that the bundled pipelines learnt at 64 x 64 pixels, to be drawn at any size."""
    return Drawings.open(bundled(REFERENCE) / "drawings.json.gz")


def prompts() -> list[str]:
    """The bundled prompts, recognisable ones first."""
    text = bundled("prompts.txt").read_text()
    return [line for line in text.splitlines() if line]
