"""Describe a forward pass of the denoiser from the arguments that it receives."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from entropy_probe.attention.call import Forward
from entropy_probe.attention.joint import CONTEXTS, context_lengths
from entropy_probe.attention.latents import Latents, find_latents

TIMESTEPS = ("timestep", "timesteps", "timestep_ratio", "t")
"""Names that model families give the timestep."""


class ForwardReader:
    """Describes and numbers the forward passes of one denoiser.

    Args:
        denoiser: the denoiser.
        numbers: the numbers of its passes.
    """

    def __init__(self, denoiser: nn.Module, numbers: Iterator[int]) -> None:
        self._denoiser, self._numbers = denoiser, numbers
        self._signature = inspect.signature(types.MethodType(type(denoiser).forward, denoiser))

    def read(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        trained: Latents | None,
        trained_frames: int | None = None,
    ) -> Forward:
        """Return the description of the forward pass that starts.

        Args:
            args: positional arguments of the denoiser.
            kwargs: its keyword arguments.
            trained: size of the latents in training; None if it is unknown.
            trained_frames: frames of tokens of the videos in training; None if they are unknown.
        """
        arguments = self._named(args, kwargs)
        timesteps = (arguments[name] for name in TIMESTEPS if name in arguments)
        latents = find_latents(self._denoiser, arguments)
        return Forward(
            number=next(self._numbers),
            timestep=next(timesteps, None),
            latents=latents,
            trained=trained,
            trained_frames=trained_frames,
            batch=_batch(arguments),
            texts=_text_lengths(arguments),
            configured=hasattr(self._denoiser, "config"),
            arguments=arguments,
        )

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the denoiser by name. The names in `**kwargs` stay as the caller passed them."""
        try:
            arguments = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        except TypeError:  # the instance has another forward, with other parameters
            return {f"arguments[{number}]": value for number, value in enumerate(args)} | kwargs
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(parameter.name, {}))
            elif parameter.kind is parameter.VAR_POSITIONAL:
                rest = arguments.pop(parameter.name, ())
                arguments.update({f"{parameter.name}[{number}]": value for number, value in enumerate(rest)})
        return arguments


def _text_lengths(arguments: Mapping[str, Any]) -> frozenset[int]:
    """Return the numbers of tokens of the texts among the arguments: those that attention layers call a context."""
    given = [value for name, value in arguments.items() if name.startswith(CONTEXTS)]
    return context_lengths((), {CONTEXTS[0]: given})


def _batch(arguments: Mapping[str, Any]) -> int | None:
    """Return the number of items of the latents, which are a tensor, or a list in some families."""
    return next(
        (
            len(value)
            for value in arguments.values()
            if (isinstance(value, Tensor) and not value.is_nested and value.ndim > 2)
            or (isinstance(value, list) and value and isinstance(value[0], Tensor))
        ),
        None,
    )


def one_timestep(timestep: Tensor | float | int | None) -> float | None:
    """Return one number for the timestep of a forward pass; None if it has none.

    Tokens of given and of finished frames have the timestep 0. With diffusion forcing, the other frames have different
    timesteps: their mean changes at each step.

    >>> one_timestep(torch.tensor([0.0, 600.0, 600.0])), one_timestep(torch.tensor([0.0, 600.0, 800.0]))
    (600.0, 700.0)
    """
    if not isinstance(timestep, Tensor):
        return None if timestep is None else float(timestep)
    values = timestep.detach().to("cpu", torch.float64).flatten()  # one copy: each comparison on a GPU would wait
    noisy = values[values > 0]
    return float(noisy.mean() if len(noisy) and bool((noisy != noisy[0]).any()) else values.max())
