"""Load a diffusers pipeline from safetensors, and select device and dtype."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from entropy_probe.attention import find_denoiser
from entropy_probe.bundled import bundled
from entropy_probe.errors import InputError
from entropy_probe.library_versions import dtype_argument
from entropy_probe.models.complete_weights import check_components, load_models
from entropy_probe.models.sizes import check_sample_size
from entropy_probe.models.weight_files import check_safetensors_only
from entropy_probe.paths import is_folder

REFERENCE = "reference"
"""Name of the bundled UNet. Accepted wherever a model name is accepted."""

REFERENCES = (REFERENCE, "reference-dit")
"""Names of both bundled models: a UNet and a transformer."""


def load(model: str | Path, *, device: str = "auto", dtype: str = "auto") -> DiffusionPipeline:
    """Load a pipeline from safetensors weights. No code of the model is run.

    Args:
        model: hub id, folder saved by `save_pretrained`, `reference` or `reference-dit`.
        device: "auto" selects cuda, else mps, else cpu.
        dtype: "float32", "float16" or "bfloat16". "auto" selects float32 on the CPU and float16 elsewhere.

    Raises:
        InputError: if the model is unknown, a folder is not a pipeline or is damaged, weights are pickled or missing,
            or the device or dtype is not available.

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
            check_components(folder)
            pipeline = DiffusionPipeline.from_pretrained(
                str(folder.resolve()),
                use_safetensors=True,
                trust_remote_code=False,
                **load_models(folder.resolve(), torch_dtype),
                **dtype_argument("diffusers", torch_dtype),
            )
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the libraries meet a damaged file with any error
        reason = " ".join(str(error).split()).split(". ")[0][:300] or type(error).__name__
        raise InputError(f"cannot load {str(model)!r} as a diffusers pipeline: {reason}") from error
    if not is_bundled and not is_folder(model):
        pipeline.register_to_config(_name_or_path=str(model))
    check_sample_size(find_denoiser(pipeline))
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
