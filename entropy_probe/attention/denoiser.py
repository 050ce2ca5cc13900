"""Find the module that runs once per sampling step, and its attention layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from entropy_probe.errors import CaptureError, InputError

PARTS = ("unet", "transformer", "prior", "decoder")
"""Names that diffusers pipelines give their denoiser."""


def find_denoiser(model: Any) -> nn.Module:
    """Return the module that runs once per sampling step: a pipeline's `unet` or `transformer`, or the module itself.

    Wrappers that pass their arguments on, such as DDP and PEFT, are unwrapped. The module inside names the
    arguments of its `forward`, and its layer names have no prefix.

    Raises:
        InputError: if `model` is neither a module nor a pipeline with a denoiser, or if the pipeline has two denoisers.

    >>> from torch import nn
    >>> find_denoiser(nn.Linear(2, 2))
    Linear(in_features=2, out_features=2, bias=True)
    """
    if isinstance(model, nn.Module):
        return unwrap(model)
    for name in PARTS:
        part = getattr(model, name, None)
        if not isinstance(part, nn.Module):
            continue
        if isinstance(getattr(model, f"{name}_2", None), nn.Module):
            raise InputError(
                f"{type(model).__name__} has two denoisers, {name} and {name}_2, and each runs a part of the steps: "
                f"pass one of them, pipe.{name} or pipe.{name}_2"
            )
        return unwrap(part)
    raise InputError(f"{type(model).__name__} has no unet or transformer: pass a diffusers pipeline or a torch module")


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside wrappers whose `forward` takes only `*args` and `**kwargs`.

    A compiled module is not unwrapped, because its graph does not call the module inside.

    Raises:
        CaptureError: for DataParallel on several devices, which runs copies of the module inside.
    """
    if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
        raise CaptureError(
            "DataParallel runs a copy of the model on each device, and the copies cannot be measured or scaled: use "
            "DistributedDataParallel, or pass the module inside and run it on one device"
        )
    while not _is_compiled(module) and _only_passes_arguments_on(module):
        inner = _inner(module)
        if inner is None:
            return module
        module = inner
    return module


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or "_orig_mod" in module._modules


def _only_passes_arguments_on(module: nn.Module) -> bool:
    forward = type(module).forward
    if forward is nn.Module.forward:
        return False
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    return bool(parameters) and all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _inner(module: nn.Module) -> nn.Module | None:
    """Return the only child, or the only one with weights; None if there are several."""
    with_weights = [child for child in module.children() if next(child.parameters(), None) is not None]
    children = with_weights or list(module.children())
    return children[0] if len(children) == 1 else None


def attention_layers(denoiser: nn.Module) -> list[str]:
    """Return the names of the attention layers: diffusers' attention classes and `nn.MultiheadAttention`.

    >>> from torch import nn
    >>> attention_layers(nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2)))
    ['1']
    """
    return attention_among(dict(denoiser.named_modules()))


def attention_among(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the modules that are attention layers."""
    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.MultiheadAttention)
        or ("Attention" in type(module).__name__ and hasattr(module, "processor"))
    ]


def refuse_compiled(denoiser: nn.Module) -> None:
    """Refuse a compiled model: Python does not see the attention calls of a compiled graph.

    Raises:
        CaptureError: naming the compiled module and the fix.
    """
    for name, module in denoiser.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{name or 'the model'} is compiled by TorchScript, whose attention calls cannot be measured or "
                "scaled: pass the model as it was before torch.jit.script or torch.jit.trace"
            )
        forward = module.__dict__.get("forward")
        if (
            module._compiled_call_impl is not None
            or "_orig_mod" in module._modules
            or hasattr(forward, "_torchdynamo_orig_callable")
        ):
            kind = type(getattr(module, "_orig_mod", module)).__name__
            place = f" (layer {name!r})" if name else ""
            raise CaptureError(
                f"{kind}{place} is compiled by torch.compile, and the attention calls of a compiled graph cannot be "
                "measured or scaled: load the pipeline again without compiling it, or apply the law before you compile"
            )
