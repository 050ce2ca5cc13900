"""How the tokens of a visual attention lie on the image."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_probe.attention.latents import Latents


@dataclass(frozen=True)
class TokenGrid:
    """`height` x `width` tokens in raster order, `stride` latent pixels apart; `aspect` is the image's height/width."""

    height: int
    width: int
    stride: int
    aspect: float

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.height * self.width

    def at(self, latents: Latents) -> TokenGrid:
        """The grid of the same layer at another size."""
        return _grid(self.stride, latents)

    def positions(self, device: torch.device | None = None) -> Float[Tensor, "tokens 2"]:
        """Token centres, (x, y), in units of the image diagonal."""
        return _centres(self.height, self.width, self.aspect, device)


@functools.lru_cache(maxsize=256)  # every call of every layer asks for one of few
def token_grid(tokens: int, latents: Latents) -> TokenGrid | None:
    """The grid with that many tokens; None where there is none."""
    return next((grid for grid in grids(latents) if grid.tokens == tokens), None)


def grids(latents: Latents) -> Iterator[TokenGrid]:
    """The grids that a denoiser may have on those latents, the finest first: its patches, halved again and again."""
    stride = latents.patch
    while stride < 2 * max(latents.height, latents.width):
        yield _grid(stride, latents)
        stride *= 2


def _grid(stride: int, latents: Latents) -> TokenGrid:
    height, width = latents.height, latents.width
    return TokenGrid(-(-height // stride), -(-width // stride), stride, height / width)


@functools.lru_cache(maxsize=64)
def _centres(height: int, width: int, aspect: float, device: torch.device | None) -> Float[Tensor, "tokens 2"]:
    diagonal = math.hypot(aspect, 1.0)
    y = (torch.arange(height) + 0.5) / height * aspect / diagonal
    x = (torch.arange(width) + 0.5) / width / diagonal
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1).to(device)
