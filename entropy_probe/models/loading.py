"""Loading a diffusers pipeline: safetensors only, on the best device there is."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
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

REFERENCE = "reference"
"""The name of the bundled UNet wherever a model is asked for."""

REFERENCES = (REFERENCE, "reference-dit")
"""The names of both bundled models: a UNet, and a transformer."""

_NOT_THE_MODEL = ("dtype", "transformers_version")
"""What a configuration says of how it was loaded or saved."""

_ADAPTERS = ("active_adapters", "scaling", "disable_adapters")
"""What peft's layers say of which adapter acts, and how strongly."""

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def load(model: str | Path, *, device: str = "auto", dtype: str = "auto") -> DiffusionPipeline:
    """Load a pipeline by hub id or local folder, or a bundled one, ready to sample.

    Args:
        model: hub id, folder saved by `save_pretrained`, `reference` or `reference-dit`.
        device: `auto` takes cuda, else mps, else cpu.
        dtype: `float32`, `float16`, `bfloat16`; `auto` is float32 on the CPU and float16 elsewhere.

    Raises:
        InputError: for an unknown model, a folder that is no pipeline, pickled weights, a device that is not there.
    """
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    folder = bundled(str(model)) if model in REFERENCES else Path(model)
    if folder.exists():
        _check_folder(folder)
    elif str(model).count("/") != 1 or str(model).startswith((".", "/", "~")):
        raise InputError(
            f"there is no folder {str(model)!r}, and it is no hub id (owner/name); "
            f"{' and '.join(map(repr, REFERENCES))} are bundled"
        )
    try:
        with _quiet() if model in REFERENCES else nullcontext():
            pipeline = DiffusionPipeline.from_pretrained(
                str(folder.resolve()) if folder.exists() else str(model),
                dtype=precision,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:300]
        raise InputError(f"cannot load {str(model)!r} as a diffusers pipeline: {reason}") from error
    find_denoiser(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(where)


def resolve_device(device: str) -> str:
    """`auto` to cuda, mps or cpu.

    Raises:
        InputError: for a device that torch does not know or this machine does not have.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.split(":")[0], False):
        raise InputError(
            f"device {device!r} is not available here; use auto or {' or '.join(d for d in there if there[d])}"
        )
    return device


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """The name of a floating dtype to the dtype; `auto` by device.

    Raises:
        InputError: for any other name.
    """
    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.float16
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise InputError(f"dtype must be auto, {', '.join(known)}, not {dtype!r}")
    return known[dtype]


def fingerprint(pipeline: Any) -> str:
    """A hash of the configuration, weights and buffers of every part: which model a run directory belongs to.

    Every bit counts; a gigabyte of weights takes about a second.

    Raises:
        InputError: for weights that are kept where they cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    parts = getattr(pipeline, "components", None) or {"denoiser": find_denoiser(pipeline)}
    for name, part in sorted(parts.items()):
        config: Any = getattr(part, "config", None)
        settings: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
        told = {k: v for k, v in settings.items() if not k.startswith("_") and k not in _NOT_THE_MODEL}
        digest.update(f"{name} {type(part).__name__}".encode())
        digest.update(json.dumps(told, sort_keys=True, default=str).encode())
        for own, values in _weights(part).items() if isinstance(part, nn.Module) else ():
            if type(values).__module__.startswith("torchao."):  # its tensors have no bytes of their own
                values = values.dequantize()
            digest.update(f"{own} {tuple(values.shape)} {values.dtype}".encode())
            digest.update(values.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
        for own, module in part.named_modules() if isinstance(part, nn.Module) else ():
            if type(module).__module__.startswith("peft."):
                digest.update(f"{own} {[getattr(module, name, None) for name in _ADAPTERS]}".encode())
    return digest.hexdigest()


def _weights(part: nn.Module) -> Mapping[str, Tensor]:
    """The weights and buffers, also where accelerate keeps them elsewhere between two calls."""
    weights = {name: values for name, values in part.state_dict().items() if isinstance(values, Tensor)}
    if any(values.is_meta for values in weights.values()):
        fetched: Mapping[str, Tensor] = get_state_dict_offloaded_model(part)
        weights = {name: fetched.get(name, values) for name, values in weights.items()}
    if lacking := [name for name, values in weights.items() if values.is_meta]:
        raise InputError(
            f"the weights {lacking[0]!r} of {type(part).__name__} are not in memory: begin before they are offloaded"
        )
    return weights


@contextmanager
def _quiet() -> Iterator[None]:
    """What diffusers has to say of the reference is known: its autoencoder is the tiny one, and it has no filter."""
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
    """Silence the loading bars and notices of diffusers and transformers, for the command line."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _check_folder(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"{folder} is no diffusers pipeline: it has no model_index.json (save one with save_pretrained)"
        )
    parts = sorted(p.parent for p in folder.glob("*/config.json"))
    for part in parts:
        if any(part.glob("*.safetensors")):
            continue
        pickles = sorted(p.name for p in part.iterdir() if p.suffix in _PICKLES)
        if pickles:
            raise InputError(
                f"{part} holds only pickled weights ({pickles[0]}), which can run code when loaded and are refused: "
                "load them where you trust them and save with save_pretrained(..., safe_serialization=True)"
            )
