"""The dtype in which a model is loaded: that of its checkpoint, or one that the user names."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from entropy_probe.attention import DENOISERS
from entropy_probe.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The dtypes that a user can name."""

_SAVED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Their names in a file of safetensors."""


def resolve_dtype(dtype: str) -> torch.dtype | None:
    """Return a floating-point dtype by its name; None for "auto", which is the dtype of the checkpoint.

    Raises:
        InputError: if the name is unknown.

    >>> resolve_dtype("bfloat16"), resolve_dtype("auto")
    (torch.bfloat16, None)
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES.get(dtype)


def saved_dtype(weights: Path, variant: str | None = None) -> torch.dtype:
    """Return the dtype of most weights of a checkpoint; float32 if it has another one, or cannot be read.

    Args:
        weights: a file of safetensors, or the folder of a pipeline, whose denoiser counts.
        variant: variant of the weights, such as "fp16".

    >>> from entropy_probe.bundled import bundled
    >>> saved_dtype(bundled("reference"))
    torch.float16
    """
    counts: Counter[str] = Counter()
    for file in [weights] if weights.is_file() else _files(weights, variant):
        counts += _count(file)
    floating = [name for name, _ in counts.most_common() if name in _SAVED]
    return _SAVED[floating[0]] if floating else torch.float32


def _count(file: Path) -> Counter[str]:
    """Return the number of weights of each dtype in a file. The library that loads a damaged file reports it."""
    counts: Counter[str] = Counter()
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is not a dictionary
                part = opened.get_slice(name)
                counts[part.get_dtype()] += math.prod(part.get_shape())
    except (SafetensorError, OSError):
        return Counter()
    return counts


def _files(folder: Path, variant: str | None) -> list[Path]:
    """Return the files of the weights of the denoiser, of a variant if it has that."""
    own = next((folder / name for name in DENOISERS if (folder / name).is_dir()), folder)
    files = sorted(own.glob("*.safetensors"))
    chosen = [file for file in files if variant is not None and f".{variant}" in file.name]
    return chosen or [file for file in files if file.name.count(".") == 1] or files
