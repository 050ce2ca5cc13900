"""Loading a diffusers pipeline, its sizes and token grids, and sampling it."""

from entropy_probe.pipelines.draw import draw
from entropy_probe.pipelines.load import REFERENCE, fingerprint, load, quiet_libraries
from entropy_probe.pipelines.sizes import (
    Layer,
    Size,
    check_size,
    format_size,
    layers,
    parse_size,
    pixels_per_latent,
    short_name,
    training_size,
    training_tokens,
)

__all__ = [
    "REFERENCE",
    "Layer",
    "Size",
    "check_size",
    "draw",
    "fingerprint",
    "format_size",
    "layers",
    "load",
    "parse_size",
    "pixels_per_latent",
    "quiet_libraries",
    "short_name",
    "training_size",
    "training_tokens",
]
