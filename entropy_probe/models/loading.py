"""Load a diffusers pipeline from safetensors, and select device and dtype."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from entropy_probe.attention import find_denoiser
from entropy_probe.bundled import bundled
from entropy_probe.errors import InputError
from entropy_probe.library_versions import dtype_argument
from entropy_probe.models.adapters import load_adapters, parse_adapter
from entropy_probe.models.complete_weights import check_components, load_models
from entropy_probe.models.dtypes import resolve_dtype, saved_dtype
from entropy_probe.models.sizes import check_sample_size
from entropy_probe.models.sources import (
    denoiser_of_file,
    from_factory,
    from_whole_file,
    is_factory,
    is_single_file,
    is_whole_pipeline,
    pipeline_of_file,
)
from entropy_probe.models.weight_files import check_safetensors_only
from entropy_probe.paths import is_folder

REFERENCE = "reference"
"""Name of the bundled UNet. Accepted wherever a model name is accepted."""

REFERENCES = (REFERENCE, "reference-dit")
"""Names of both bundled models: a UNet and a transformer."""


@dataclass(frozen=True)
class LoadingOptions:
    """How to load a model.

    Attributes:
        variant: variant of the weights, such as "fp16".
        base: folder or hub id of the pipeline whose configuration and other components a single file of weights uses.
        lora: LoRA files, each `FILE` or `FILE:SCALE`.
        offload: "model" or "sequential" keeps the weights in the memory of the CPU, and moves them to the GPU when
            they are needed.
    """

    variant: str | None = None
    base: str | None = None
    lora: tuple[str, ...] = ()
    offload: str | None = None

    def absolute(self) -> LoadingOptions:
        """Return the options with absolute paths, for a process in another folder."""
        adapters = [parse_adapter(text) for text in self.lora]
        lora = tuple(f"{adapter.path.absolute()}:{adapter.scale:g}" for adapter in adapters)
        base = str(Path(self.base).absolute()) if self.base is not None and is_folder(self.base) else self.base
        return replace(self, base=base, lora=lora)


@dataclass(frozen=True)
class ModelSource:
    """A model by its name, with the options to load it.

    >>> ModelSource("reference").load(device="cpu").device.type
    'cpu'
    """

    model: str
    options: LoadingOptions = LoadingOptions()

    def load(self, *, device: str = "auto", dtype: str = "auto") -> DiffusionPipeline:
        """Load the pipeline; see `load`."""
        return load(self.model, device=device, dtype=dtype, **vars(self.options))


def load(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    variant: str | None = None,
    base: str | None = None,
    lora: Sequence[str] = (),
    offload: str | None = None,
) -> DiffusionPipeline:
    """Load a pipeline from safetensors weights. No code of the model is run, except a function that you name.

    Args:
        model: hub id, folder saved by `save_pretrained`, file of safetensors, `reference` or `reference-dit`; or
            `module:function`, a Python function that returns a pipeline.
        device: "auto" selects cuda, else mps, else cpu.
        dtype: "float32", "float16" or "bfloat16". "auto" is the dtype in which the denoiser was saved. The bundled
            models, which are stored in float16, are computed in float32 on the CPU.
        variant: variant of the weights, such as "fp16".
        base: for a file of safetensors, the folder or hub id of the pipeline with its configuration. If the file has
            only the denoiser, the other components are loaded from there. By default, diffusers finds a hub id.
        lora: LoRA files, each `FILE` or `FILE:SCALE`.
        offload: "model" or "sequential" keeps the weights in the memory of the CPU, and moves them to the GPU when
            they are needed.

    Raises:
        InputError: if the model is unknown, a folder is not a pipeline or is damaged, weights are pickled or missing,
            or the device, dtype or another option is not available.

    >>> pipeline = load("reference", device="cpu")
    >>> type(pipeline).__name__, pipeline.device.type
    ('StableDiffusionPipeline', 'cpu')
    """
    name, device_name = str(model), resolve_device(device)
    torch_dtype = resolve_dtype(dtype)
    adapters = [parse_adapter(text) for text in lora]
    check_offload(offload, device_name)
    _check_options(name, variant, base)
    if is_factory(name):
        pipeline = from_factory(name)
        if torch_dtype is not None:
            pipeline = pipeline.to(torch_dtype)
    else:
        pipeline = _load_weights(model, device_name, torch_dtype, variant, base)
    check_sample_size(find_denoiser(pipeline))
    load_adapters(pipeline, adapters)
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
    return place(pipeline, device_name, offload)


def _check_options(name: str, variant: str | None, base: str | None) -> None:
    """Refuse options that do not belong to this kind of model."""
    if base is not None and not is_single_file(name):
        raise InputError(f"base is only for a file of safetensors, got {base!r:.100} with {name!r:.200}: leave it out")
    if variant is not None and (is_factory(name) or is_single_file(name)):
        raise InputError(
            f"variant is only for a folder or hub id, got {variant!r:.100} with {name!r:.200}: leave it out"
        )


def _load_weights(
    model: str | Path, device: str, dtype: torch.dtype | None, variant: str | None, base: str | None
) -> DiffusionPipeline:
    """Load a pipeline from a folder, a hub id or a single file. dtype None is that of the checkpoint."""
    is_bundled = model in REFERENCES
    if is_bundled and dtype is None and device == "cpu":
        dtype = torch.float32
    try:
        with _quiet() if is_bundled else nullcontext():
            if is_single_file(str(model)):
                return _load_file(Path(model), dtype, base)
            folder = bundled(str(model)) if is_bundled else _local_folder(model, variant)
            pipeline = _load_folder(folder.resolve(), dtype or saved_dtype(folder, variant), variant)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the libraries meet a damaged file with any error
        reason = " ".join(str(error).split()).split(". ")[0][:300] or type(error).__name__
        raise InputError(f"cannot load {str(model)!r} as a diffusers pipeline: {reason}") from error
    if not is_bundled and not is_folder(model):
        pipeline.register_to_config(_name_or_path=str(model))
    return pipeline


def _load_folder(
    folder: Path, dtype: torch.dtype, variant: str | None = None, **given: torch.nn.Module
) -> DiffusionPipeline:
    """Load the pipeline of a folder. `given` are components that are already loaded."""
    check_safetensors_only(folder)
    check_components(folder)
    return DiffusionPipeline.from_pretrained(
        str(folder),
        use_safetensors=True,
        trust_remote_code=False,
        **({} if variant is None else {"variant": variant}),
        **load_models(folder, dtype, variant, skip=given),
        **given,
        **dtype_argument("diffusers", dtype),
    )


def _load_file(file: Path, dtype: torch.dtype | None, base: str | None) -> DiffusionPipeline:
    """Load a pipeline from a single file, with the configuration of another one."""
    of_file = dtype or saved_dtype(file)
    if is_whole_pipeline(file):
        pipeline: DiffusionPipeline = from_whole_file(file, base or pipeline_of_file(file), of_file)
    else:
        folder = _local_folder(base or pipeline_of_file(file)).resolve()
        pipeline = _load_folder(folder, of_file, None, **denoiser_of_file(file, folder, of_file))
    pipeline.register_to_config(_name_or_path=str(file.absolute()))
    return pipeline


OFFLOADS = ("model", "sequential")
"""Kinds of offloading: whole components, or single modules, which needs less memory and more time."""


def check_offload(offload: str | None, device: str) -> None:
    """Check a kind of offloading.

    Raises:
        InputError: if it is unknown, or there is no GPU to compute on.

    >>> check_offload(None, "cpu")
    """
    if offload is not None and offload not in OFFLOADS:
        raise InputError(f"offload must be {' or '.join(OFFLOADS)}, got {offload!r:.100}")
    if offload is not None and device == "cpu":
        raise InputError(f"offload moves weights to a GPU, got {offload!r} with the device cpu: leave it out")


def place(pipeline: Any, device: str, offload: str | None) -> Any:
    """Move a pipeline to a device, or let accelerate move its parts when they run.

    Raises:
        InputError: if a pipeline does not support offloading.
    """
    if offload is None:
        return pipeline.to(device)
    name = {"model": "enable_model_cpu_offload", "sequential": "enable_sequential_cpu_offload"}[offload]
    if not hasattr(pipeline, name):
        raise InputError(f"{type(pipeline).__name__} does not support offload {offload!r}: leave it out")
    getattr(pipeline, name)(device=device)
    return pipeline


def _local_folder(model: str | Path, variant: str | None = None) -> Path:
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
            f"unknown model {str(model)!r:.200}: it is not a folder and not a hub id (owner/name), a file or "
            f"MODULE:FUNCTION. Bundled models are {' and '.join(map(repr, REFERENCES))}"
        )
    try:
        return Path(
            DiffusionPipeline.download(str(model), use_safetensors=True, trust_remote_code=False, variant=variant)
        )
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
