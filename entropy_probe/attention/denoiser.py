"""The part of a pipeline that runs once a sampling step."""

from __future__ import annotations

from typing import Any

from torch import nn

from entropy_probe.errors import InputError


def find_denoiser(model: Any) -> nn.Module:
    """The module that runs once a sampling step: a pipeline's `unet` or `transformer`, or the module itself.

    Raises:
        InputError: if `model` is neither a module nor a pipeline that has one, or a pipeline that has two.
    """
    if isinstance(model, nn.Module):
        return model
    for name in ("unet", "transformer", "prior", "decoder"):
        part = getattr(model, name, None)
        if not isinstance(part, nn.Module):
            continue
        if isinstance(getattr(model, f"{name}_2", None), nn.Module):
            raise InputError(
                f"{type(model).__name__} samples with two denoisers, {name} and {name}_2, each in its own part of the "
                f"steps: give each by itself, as pipe.{name} and pipe.{name}_2"
            )
        return part
    raise InputError(f"{type(model).__name__} has no unet or transformer: give a diffusers pipeline or a torch module")
