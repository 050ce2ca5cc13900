"""The part of a pipeline that runs once a sampling step."""

from __future__ import annotations

from typing import Any

from torch import nn

from entropy_probe.errors import InputError


def find_denoiser(model: Any) -> nn.Module:
    """The module that runs once a sampling step: a pipeline's `unet` or `transformer`, or the module itself.

    Raises:
        InputError: if `model` is neither a module nor a pipeline that has one.
    """
    if isinstance(model, nn.Module):
        return model
    for name in ("unet", "transformer", "prior", "decoder"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            return part
    raise InputError(f"{type(model).__name__} has no unet or transformer: give a diffusers pipeline or a torch module")
