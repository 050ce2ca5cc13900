"""Load a diffusers pipeline from safetensors, select device and dtype, and identify a model by its weights."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from entropy_probe.attention import find_denoiser
from entropy_probe.bundled import bundled
from entropy_probe.errors import InputError
from entropy_probe.library_versions import dtype_argument
from entropy_probe.models.complete_weights import load_models
from entropy_probe.models.weight_files import check_safetensors_only
from entropy_probe.paths import is_folder

REFERENCE = "reference"
"""Name of the bundled UNet. Accepted wherever a model name is accepted."""

REFERENCES = (REFERENCE, "reference-dit")
"""Names of both bundled models: a UNet and a transformer."""

_LOADING_SETTINGS = ("dtype", "transformers_version")
"""Settings of a configuration that depend on how a model was loaded or saved. They are not part of its fingerprint."""

_ADAPTER_SETTINGS = ("active_adapters", "scaling", "disable_adapters")
"""Attributes of PEFT layers: which adapters are active, and how strongly."""


def load(model: str | Path, *, device: str = "auto", dtype: str = "auto") -> DiffusionPipeline:
    """Load a pipeline from safetensors weights. No code of the model is run.

    Args:
        model: hub id, folder saved by `save_pretrained`, `reference` or `reference-dit`.
        device: "auto" selects cuda, else mps, else cpu.
        dtype: "float32", "float16" or "bfloat16". "auto" selects float32 on the CPU and float16 elsewhere.

    Raises:
        InputError: if the model is unknown, a folder is not a pipeline, weights are pickled or missing, or the device
            or dtype is not available.

    >>> pipeline = load("reference", device="cpu")
    >>> type(pipeline).__name__, pipeline.device.type
    ('StableDiffusionPipeline', 'cpu')
    """
    device_name = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, device_name)
    is_bundled = model in REFERENCES
    try:
        with _quiet() if is_bundled else nullcontext():
            folder = bundled(str(model)) if is_bundled else _local_folder(model)
            check_safetensors_only(folder)
            pipeline = DiffusionPipeline.from_pretrained(
                str(folder.resolve()),
                use_safetensors=True,
                trust_remote_code=False,
                **load_models(folder.resolve(), torch_dtype),
                **dtype_argument("diffusers", torch_dtype),
            )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:300]
        raise InputError(f"cannot load {str(model)!r} as a diffusers pipeline: {reason}") from error
    if not is_bundled and not is_folder(model):
        pipeline.register_to_config(_name_or_path=str(model))
    find_denoiser(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device_name)


def _local_folder(model: str | Path) -> Path:
    """Return the folder of a pipeline. A pipeline on the hub is downloaded, without its pickle files.

    Raises:
        InputError: if the folder does not exist, is not a pipeline, or cannot be downloaded.
    """
    folder = Path(model)
    if is_folder(folder):
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"{folder} is not a diffusers pipeline, it has no model_index.json: save one with save_pretrained"
            )
        return folder
    if str(model).count("/") != 1 or str(model).startswith((".", "/", "~")):
        raise InputError(
            f"unknown model {str(model)!r:.200}: it is not a folder and not a hub id (owner/name). Bundled models are "
            f"{' and '.join(map(repr, REFERENCES))}"
        )
    try:
        return Path(DiffusionPipeline.download(str(model), use_safetensors=True, trust_remote_code=False))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].split(" (")[0][:300]
        raise InputError(
            f"cannot download {str(model)!r}: {reason}. Check the name, the network and your access to the model "
            "(hf auth login), or give the folder of a saved pipeline"
        ) from error


def resolve_device(device: str) -> str:
    """Return the name of a device. "auto" becomes cuda, mps or cpu.

    Raises:
        InputError: if torch does not know the device, or this machine does not have it.

    >>> resolve_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    with suppress(RuntimeError):  # torch does not know the name
        if available.get(torch.device(device).type, False):
            return device
    names = " or ".join(name for name in available if available[name])
    raise InputError(f"device {device!r:.100} is not available on this machine: use auto or {names}")


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """Return a floating-point dtype by its name. "auto" becomes float32 on the CPU and float16 elsewhere.

    Raises:
        InputError: if the name is unknown.

    >>> resolve_dtype("auto", "cpu")
    torch.float32
    """
    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.float16
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise InputError(f"dtype must be auto, {', '.join(known)}, got {dtype!r}")
    return known[dtype]


def fingerprint(pipeline: Any) -> str:
    """Return a hash of the configuration, weights and buffers of all components. It identifies the model of a run.

    All bits are included. One gigabyte of weights takes about a second.

    Raises:
        InputError: if weights are offloaded to a place where they cannot be read.

    >>> pipeline = load("reference", device="cpu")
    >>> before = fingerprint(pipeline)
    >>> with torch.no_grad():
    ...     _ = pipeline.unet.conv_in.bias.add_(1)
    >>> fingerprint(pipeline) == before
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    components = getattr(pipeline, "components", None) or {"denoiser": find_denoiser(pipeline)}
    for name, component in sorted(components.items()):
        config: Any = getattr(component, "config", None)
        settings: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
        own = {key: v for key, v in settings.items() if not key.startswith("_") and key not in _LOADING_SETTINGS}
        digest.update(f"{name} {type(component).__name__}".encode())
        digest.update(json.dumps(own, sort_keys=True, default=str).encode())
        if isinstance(component, nn.Module):
            _hash_weights(digest, component)
    return digest.hexdigest()


def _hash_weights(digest: hashlib.blake2b, component: nn.Module) -> None:
    """Add the weights, the buffers and the state of PEFT adapters to a hash."""
    for name, values in _weights(component).items():
        if type(values).__module__.startswith("torchao."):  # these tensors have no bytes that can be viewed
            values = values.dequantize()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
    for name, module in component.named_modules():
        if type(module).__module__.startswith("peft."):
            digest.update(f"{name} {[getattr(module, setting, None) for setting in _ADAPTER_SETTINGS]}".encode())


def _weights(component: nn.Module) -> Mapping[str, Tensor]:
    """Return the weights and buffers. Those that accelerate has offloaded are fetched."""
    weights = {name: values for name, values in component.state_dict().items() if isinstance(values, Tensor)}
    if any(values.is_meta for values in weights.values()):
        fetched: Mapping[str, Tensor] = get_state_dict_offloaded_model(component)
        weights = {name: fetched.get(name, values) for name, values in weights.items()}
    if missing := [name for name, values in weights.items() if values.is_meta]:
        raise InputError(
            f"the weights {missing[0]!r} of {type(component).__name__} are not in memory: load the model without "
            "offloading them"
        )
    return weights


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages of diffusers about the tiny autoencoder and the missing filter of a bundled model."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(level)
        diffusers_logging.enable_progress_bar()


def quiet_libraries() -> None:
    """Hide progress bars and notices of diffusers, transformers and the hub. The command line calls it.

    >>> quiet_libraries()
    >>> from diffusers.utils import logging
    >>> logging.get_verbosity() == logging.ERROR
    True
    """
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
