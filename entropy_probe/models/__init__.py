"""Load a diffusers pipeline, list its sizes and token grids, sample it, and compute its denoising loss."""

from entropy_probe.models.complete_weights import load_complete
from entropy_probe.models.defaults import SamplingSettings, sampling_defaults, sampling_settings
from entropy_probe.models.denoising_loss import Objective, encode, encode_with, objective
from entropy_probe.models.failures import is_out_of_memory
from entropy_probe.models.fingerprints import FINGERPRINT_VERSION, fingerprint, fingerprint_version
from entropy_probe.models.images import CaptionedImages, ImageFolder, to_tensor
from entropy_probe.models.loading import REFERENCE, REFERENCES, load, quiet_libraries
from entropy_probe.models.pipeline_call import check_call, describe, takes_prompt
from entropy_probe.models.sampling import sample_images
from entropy_probe.models.size_confounders import confounders
from entropy_probe.models.sizes import (
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
from entropy_probe.models.weight_files import check_safetensors_only

__all__ = [
    "FINGERPRINT_VERSION",
    "REFERENCE",
    "REFERENCES",
    "CaptionedImages",
    "ImageFolder",
    "Layer",
    "Objective",
    "SamplingSettings",
    "Size",
    "check_call",
    "check_guidance",
    "check_safetensors_only",
    "check_size",
    "check_steps",
    "confounders",
    "describe",
    "encode",
    "encode_with",
    "fingerprint",
    "fingerprint_version",
    "format_size",
    "is_out_of_memory",
    "layers",
    "load",
    "load_complete",
    "objective",
    "parse_size",
    "pixels_per_latent",
    "quiet_libraries",
    "sample_images",
    "sampling_defaults",
    "sampling_settings",
    "short_name",
    "takes_prompt",
    "to_tensor",
    "training_size",
    "training_tokens",
]
