"""The bundled reference pipeline: loading it, and the recipe that trained it."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from entropy_probe.pipelines import REFERENCE
from entropy_probe.pipelines import load as load_pipeline


def load(*, device: str = "auto", dtype: str = "auto") -> Any:
    """The bundled `StableDiffusionPipeline`, trained at 64 x 64 pixels on captioned emoji.

    Args:
        device: see `pipelines.load`.
        dtype: see `pipelines.load`.
    """
    return load_pipeline(REFERENCE, device=device, dtype=dtype)


def prompts() -> list[str]:
    """The bundled prompts, recognisable ones first."""
    text = (files("entropy_probe.data") / "prompts.txt").read_text()
    return [line for line in text.splitlines() if line]
