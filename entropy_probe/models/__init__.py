"""Load a diffusers pipeline, list its sizes and token grids, sample it, and compute its denoising loss."""

from entropy_probe.models.adapters import parse_adapter
from entropy_probe.models.complete_weights import load_complete
from entropy_probe.models.defaults import SamplingSettings, sampling_defaults, sampling_settings
from entropy_probe.models.denoising_loss import Objective, encode, encode_with, objective
from entropy_probe.models.failures import is_out_of_memory
from entropy_probe.models.fingerprints import FINGERPRINT_VERSION, fingerprint, fingerprint_version
from entropy_probe.models.images import CaptionedImages, ImageFolder, to_tensor
from entropy_probe.models.loading import REFERENCE, REFERENCES, LoadingOptions, ModelSource, load, quiet_libraries
from entropy_probe.models.outputs import Clip, clips, from_png, middle, to_png
from entropy_probe.models.pipeline_call import check_call, describe, takes_prompt, takes_size
from entropy_probe.models.sampling import sample_clips, sample_images
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
    size_multiple,
    training_size,
    training_tokens,
)
from entropy_probe.models.sources import is_factory
from entropy_probe.models.weight_files import check_safetensors_only

__all__ = [
    "FINGERPRINT_VERSION",
    "REFERENCE",
    "REFERENCES",
    "CaptionedImages",
    "Clip",
    "ImageFolder",
    "Layer",
    "LoadingOptions",
    "ModelSource",
    "Objective",
    "SamplingSettings",
    "Size",
    "check_call",
    "check_guidance",
    "check_safetensors_only",
    "check_size",
    "check_steps",
    "clips",
    "confounders",
    "describe",
    "encode",
    "encode_with",
    "fingerprint",
    "fingerprint_version",
    "format_size",
    "from_png",
    "is_factory",
    "is_out_of_memory",
    "layers",
    "load",
    "load_complete",
    "middle",
    "objective",
    "parse_adapter",
    "parse_size",
    "pixels_per_latent",
    "quiet_libraries",
    "sample_clips",
    "sample_images",
    "sampling_defaults",
    "sampling_settings",
    "short_name",
    "size_multiple",
    "takes_prompt",
    "takes_size",
    "to_png",
    "to_tensor",
    "training_size",
    "training_tokens",
]
