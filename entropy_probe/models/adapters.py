"""Load LoRA adapters into a pipeline."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from entropy_probe.errors import InputError
from entropy_probe.paths import exists, is_file, is_folder


@dataclass(frozen=True)
class Adapter:
    """A LoRA, and the factor of its weights.

    Attributes:
        path: file of safetensors.
        scale: factor of its weights; 1 is the strength of its training.
    """

    path: Path
    scale: float = 1.0


def parse_adapter(text: str) -> Adapter:
    """Read `PATH` or `PATH:SCALE`. A folder stands for its only file of safetensors.

    Raises:
        InputError: if there is no such file.

    >>> parse_adapter("no-such.safetensors:0.8")
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: cannot read the LoRA 'no-such.safetensors': give a .safetensors file, or ...
    """
    name, colon, number = text.rpartition(":")
    is_scaled = bool(colon) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", number) is not None and not exists(text)
    path = Path(name if is_scaled else text)
    if is_folder(path):
        files = sorted(path.glob("*.safetensors"))
        path = files[0] if len(files) == 1 else path
    if not is_file(path) or path.suffix != ".safetensors":
        raise InputError(f"cannot read the LoRA {str(path)!r:.200}: give a .safetensors file, or FILE:SCALE")
    return Adapter(path, float(number) if is_scaled else 1.0)


def load_adapters(pipeline: Any, adapters: Sequence[Adapter]) -> None:
    """Load LoRA adapters into a pipeline and activate all of them with their scales.

    Raises:
        InputError: if the pipeline takes no LoRA, a library is missing, or weights do not fit to the model.

    >>> load_adapters(object(), [])
    """
    if not adapters:
        return
    kind = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise InputError(f"{kind} takes no LoRA, got {str(adapters[0].path)!r:.200}: leave it out")
    names = [f"lora{number}" for number in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        try:
            pipeline.load_lora_weights(
                str(adapter.path.parent), weight_name=adapter.path.name, adapter_name=name, use_safetensors=True
            )
        except Exception as error:  # diffusers and PEFT meet other models with any error
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"cannot load the LoRA {str(adapter.path)!r:.200} into {kind}: {reason}") from error
        saved, loaded = _saved_numbers(adapter.path), _loaded_numbers(pipeline, name)
        if loaded < saved:
            raise InputError(
                f"the LoRA {str(adapter.path)!r:.200} does not fit to {kind}: {saved - loaded:,} of its {saved:,} "
                "weights have no layer in this model. Give a LoRA that was trained on this model"
            )
    pipeline.set_adapters(names, [adapter.scale for adapter in adapters])


def _saved_numbers(path: Path) -> int:
    """Return the number of weights of a LoRA file, without its scales."""
    total = 0
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a dictionary
                shape = file.get_slice(name).get_shape()
                total += 0 if "alpha" in name or "dora" in name else math.prod(shape)
    except SafetensorError as error:
        raise InputError(f"cannot read the LoRA {str(path)!r:.200}: {error}") from error
    return total


def _loaded_numbers(pipeline: Any, adapter: str) -> int:
    """Return the number of weights of an adapter in the components of a pipeline."""
    return sum(
        parameter.numel()
        for part in pipeline.components.values()
        if isinstance(part, nn.Module)
        for name, parameter in part.named_parameters()
        if f".{adapter}." in name and "lora_" in name
    )
