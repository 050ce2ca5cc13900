"""Models that are not a folder of diffusers: the pipeline of a Python function, and a single file of weights."""

from __future__ import annotations

import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from entropy_probe.attention import DENOISERS, find_denoiser
from entropy_probe.errors import InputError
from entropy_probe.models.complete_weights import refuse_missing
from entropy_probe.models.weight_files import read_fields
from entropy_probe.paths import exists, is_file

_WHOLE = ("first_stage_model.", "cond_stage_model.", "conditioner.")
"""Beginnings of weights that only a checkpoint of a whole pipeline has."""


def is_factory(model: str) -> bool:
    """Return whether a name is that of a Python function, `module:function`.

    >>> is_factory("my_models:build"), is_factory("owner/model")
    (True, False)
    """
    return bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", model)) and not exists(model)


def is_single_file(model: str) -> bool:
    """Return whether a name is that of a file of safetensors.

    >>> is_single_file("no-such.safetensors")
    False
    """
    return model.endswith(".safetensors") and is_file(model)


def from_factory(model: str) -> Any:
    """Call a Python function without arguments, and return its pipeline. The current folder is searched first.

    Raises:
        InputError: if the function does not exist, fails, or returns something else than a pipeline.

    >>> from_factory("math:no_such")
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: cannot load 'math:no_such': AttributeError: module 'math' has no attribute ...
    """
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        pipeline = pkgutil.resolve_name(model)()
    except InputError:
        raise
    except Exception as error:  # code of the user
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"cannot load {model!r}: {reason}. Give MODULE:FUNCTION of a function that returns a pipeline"
        ) from error
    finally:
        sys.path[:] = before
    if isinstance(pipeline, nn.Module) or not callable(pipeline):
        raise InputError(f"{model!r} must return a pipeline, got {type(pipeline).__name__}")
    find_denoiser(pipeline)
    return pipeline


def pipeline_of_file(file: Path) -> str:
    """Return the hub id of the pipeline that diffusers knows for a file of weights.

    Raises:
        InputError: if the file cannot be read.
    """
    return str(fetch_diffusers_config(_weights(file))["pretrained_model_name_or_path"])


def is_whole_pipeline(file: Path) -> bool:
    """Return whether a file has the weights of all components, and not only of the denoiser.

    Raises:
        InputError: if the file cannot be read.
    """
    try:
        with safe_open(file, "pt") as opened:
            return any(name.startswith(_WHOLE) for name in opened.keys())  # noqa: SIM118 - it is not a dictionary
    except SafetensorError as error:
        raise InputError(f"cannot read {str(file)!r:.200} as safetensors: {error}") from error


def from_whole_file(file: Path, base: str, dtype: torch.dtype) -> Any:
    """Load a pipeline whose weights are all in one file.

    Args:
        file: file of safetensors.
        base: folder or hub id of the pipeline whose configuration it has.
        dtype: dtype of the weights.

    Raises:
        InputError: if weights are missing.
    """
    kind = getattr(diffusers, str(DiffusionPipeline.load_config(base)["_class_name"]))
    pipeline = kind.from_single_file(str(file), config=base, torch_dtype=dtype)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            _check_complete(part, file)
    return pipeline


def denoiser_of_file(file: Path, base: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Load the denoiser of a pipeline from one file.

    Args:
        file: file of safetensors.
        base: folder of the pipeline, with the configuration of the denoiser.
        dtype: dtype of the weights.

    Returns:
        The denoiser, by the name of the component.

    Raises:
        InputError: if weights are missing, or the base has no denoiser.
    """
    fields = read_fields(base / "model_index.json")
    name = next((name for name in DENOISERS if isinstance(fields.get(name), list)), None)
    if name is None:
        raise InputError(f"{base} has no denoiser, which is one of {', '.join(DENOISERS)}: give another base")
    kind = getattr(diffusers, str(fields[name][1]))
    weights = _weights(file)
    denoiser = kind.from_config(kind.load_config(str(base), subfolder=name))
    known = denoiser.state_dict().keys()
    if 2 * len(known & weights.keys()) > len(known):  # the names of diffusers; otherwise those of the first release
        refuse_missing(denoiser, file, sorted(known - weights.keys()))
        denoiser.load_state_dict({key: weights[key].to(dtype) for key in known}, assign=True)
        denoiser.eval()
    else:
        denoiser = kind.from_single_file(str(file), config=str(base), subfolder=name, torch_dtype=dtype)
    _check_complete(denoiser, file)
    return {name: denoiser}


def _check_complete(model: nn.Module, file: Path) -> None:
    """Refuse a model with weights that the file did not contain: diffusers leaves them without values."""
    refuse_missing(model, file, [name for name, values in model.state_dict().items() if values.is_meta])


def _weights(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read {str(file)!r:.200} as safetensors: {error}") from error
