"""Loading a diffusers pipeline, its sizes and token grids, sampling it, and its denoising loss."""

from entropy_probe.pipelines.draw import draw
from entropy_probe.pipelines.load import REFERENCE, REFERENCES, fingerprint, load, quiet_libraries
from entropy_probe.pipelines.objective import Objective, encode, encode_with, objective
from entropy_probe.pipelines.pictures import PictureFolder, Pictures, to_tensor
from entropy_probe.pipelines.sizes import (
    Layer,
    Size,
    check_guidance,
    check_size,
    check_steps,
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
    "REFERENCES",
    "Layer",
    "Objective",
    "PictureFolder",
    "Pictures",
    "Size",
    "check_guidance",
    "check_size",
    "check_steps",
    "draw",
    "encode",
    "encode_with",
    "fingerprint",
    "format_size",
    "layers",
    "load",
    "objective",
    "parse_size",
    "pixels_per_latent",
    "quiet_libraries",
    "short_name",
    "to_tensor",
    "training_size",
    "training_tokens",
]
