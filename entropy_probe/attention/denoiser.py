"""Find the module that runs once per sampling step, and its attention layers."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from entropy_probe.attention.compiling import is_compiled, runs_uncompiled
from entropy_probe.attention.forwards import TIMESTEPS
from entropy_probe.errors import CaptureError, InputError

DENOISERS = ("unet", "transformer", "prior", "decoder")
"""Names that diffusers pipelines give their denoiser."""
_ATTENTION = re.compile(r"^(?!.*Pool).*(attention|attn)", re.IGNORECASE)
_QUERIES = re.compile(r"(^|_)w?(q|qkv|query|queries)(_|$)|^(c_attn|in_proj|att_proj)", re.IGNORECASE)
"""Names of the projection of the queries, or of queries, keys and values."""


class Denoisers(nn.Module):
    """The two denoisers of a pipeline such as Wan 2.2. Each runs a part of the steps.

    Names of layers begin with the name of their denoiser: `transformer.` or `transformer_2.`. The first one
    determines the configuration, dtype and device. `find_denoiser` creates a new container at each call. Its
    `forward` is never called.

    Args:
        parts: the denoisers by their name in the pipeline.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self._modules[name] = part

    @property
    def config(self) -> Any:
        """Configuration of the first denoiser."""
        return self._first.config

    @property
    def dtype(self) -> Any:
        """Dtype of the first denoiser."""
        return self._first.dtype

    @property
    def device(self) -> Any:
        """Device of the first denoiser."""
        return self._first.device

    @property
    def _first(self) -> Any:
        return next(self.children())


def parts_of_denoiser(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that run, by the beginning of the names of their layers: a single one has no name.

    >>> list(parts_of_denoiser(nn.Identity()))
    ['']
    """
    return dict(denoiser.named_children()) if isinstance(denoiser, Denoisers) else {"": denoiser}


def denoiser_name(denoiser: nn.Module) -> str:
    """Return the name of a denoiser for messages: its class, or the parts of a pipeline with two.

    >>> denoiser_name(nn.Identity()), denoiser_name(Denoisers({"unet": nn.Identity(), "unet_2": nn.Identity()}))
    ('Identity', 'unet and unet_2')
    """
    parts = parts_of_denoiser(denoiser)
    return type(denoiser).__name__ if "" in parts else " and ".join(parts)


def find_denoiser(model: Any) -> nn.Module:
    """Return the module that runs once per sampling step: a pipeline's `unet` or `transformer`, or the module itself.

    For a pipeline with two denoisers, return a container with both. Each runs a part of the steps.

    Wrappers that pass their arguments on, such as DDP and PEFT, are unwrapped. The module inside names the
    arguments of its `forward`, and its layer names have no prefix.

    Raises:
        InputError: if `model` is neither a module nor a pipeline with a denoiser.

    >>> from torch import nn
    >>> find_denoiser(nn.Linear(2, 2))
    Linear(in_features=2, out_features=2, bias=True)
    """
    if isinstance(model, nn.Module):
        return unwrap(model)
    for name in DENOISERS:
        named = {own: getattr(model, own, None) for own in (name, f"{name}_2")}
        parts = {own: unwrap(part) for own, part in named.items() if isinstance(part, nn.Module)}
        if parts:
            return Denoisers(parts) if len(parts) > 1 else next(iter(parts.values()))
    raise InputError(f"{type(model).__name__} has no unet or transformer: pass a diffusers pipeline or a torch module")


def other_attention(pipeline: Any) -> dict[str, nn.Module]:
    """Return the modules of a pipeline, other than its denoiser, that run attention in the sampling steps.

    These receive a timestep and contain attention layers, such as a ControlNet. Text encoders and autoencoders do not.

    Returns:
        The modules by their name in the pipeline; none for a module.
    """
    if isinstance(pipeline, nn.Module):
        return {}
    denoisers = parts_of_denoiser(find_denoiser(pipeline)).values()
    parts: dict[str, Any] = {}
    for name, part in vars(pipeline).items():
        several = isinstance(part, list | tuple)
        parts |= {f"{name}[{number}]": one for number, one in enumerate(part)} if several else {name: part}
    return {
        name: part
        for name, part in parts.items()
        if isinstance(part, nn.Module)
        and not any(unwrap(part) is own for own in denoisers)
        and takes_timestep(unwrap(part))
        and attention_layers(part)
    }


def takes_timestep(module: nn.Module) -> bool:
    """Return whether the forward of a module has an argument for the timestep.

    >>> takes_timestep(nn.Identity())
    False
    """
    return not {*inspect.signature(type(module).forward).parameters}.isdisjoint(TIMESTEPS)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside wrappers whose `forward` takes only `*args` and `**kwargs`.

    A compiled module is unwrapped only while it runs uncompiled, because its graph does not call the module inside.

    Raises:
        CaptureError: for DataParallel on several devices, which runs copies of the module inside.
    """
    if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
        raise CaptureError(
            "DataParallel runs a copy of the model on each device, and the copies cannot be measured or scaled: use "
            "DistributedDataParallel, or pass the module inside and run it on one device"
        )
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper passes its arguments on to; None if the module is not a wrapper."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    if (compiled := module._modules.get("_orig_mod")) is not None:
        return compiled if runs_uncompiled() else None
    return _inner(module) if _only_passes_arguments_on(type(module).forward) else None


@functools.lru_cache(maxsize=256)  # each forward pass asks
def _only_passes_arguments_on(forward: Callable[..., Any]) -> bool:
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
    """Return the names of the attention layers.

    These are `nn.MultiheadAttention`, diffusers' attention classes, and other classes whose name contains "Attention"
    or "Attn" and that project their queries themselves, such as those of transformers. Layers that pool text into one
    token do not count.

    >>> from torch import nn
    >>> attention_layers(nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2)))
    ['1']
    """
    return attention_among(dict(denoiser.named_modules()))


def attention_among(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the modules that are attention layers."""
    named = {name for name, module in modules.items() if _has_processor(module)}
    others = [name for name, module in modules.items() if name not in named and _projects_queries(module)]
    around = {outer for name in (*named, *others) for outer in _containers(name)}
    named.update(name for name in others if name not in around)  # the innermost one attends
    return [name for name in modules if name in named]


def _containers(name: str) -> Iterator[str]:
    """Yield the names of the modules that contain a module."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _has_processor(module: nn.Module) -> bool:
    name = type(module).__name__
    return isinstance(module, nn.MultiheadAttention) or ("Attention" in name and hasattr(module, "processor"))


def _projects_queries(module: nn.Module) -> bool:
    name = type(module).__name__
    return bool(_ATTENTION.search(name)) and any(map(_QUERIES.search, (*module._modules, *module._parameters)))


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
        if is_compiled(module) and not runs_uncompiled():
            kind = type(getattr(module, "_orig_mod", module)).__name__
            place = f" (layer {name!r})" if name else ""
            raise CaptureError(
                f"{kind}{place} is compiled by torch.compile, and the attention calls of a compiled graph cannot be "
                'measured or scaled: open the context inside `with torch.compiler.set_stance("force_eager"):` (torch '
                "2.6), which runs the model uncompiled. To keep it compiled, apply a law before you compile, or write "
                "the law into the weights with `entropy-probe export LAW --to weights`"
            )
