"""The layout of the tokens of a visual attention on the image."""

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
    """Tokens in raster order on an image.

    Attributes:
        height: number of rows.
        width: number of tokens in a row.
        stride: distance of two tokens, in latent pixels.
        aspect: height of the image divided by its width.
    """

    height: int
    width: int
    stride: int
    aspect: float

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.height * self.width

    def at(self, latents: Latents) -> TokenGrid:
        """Return the grid of the same layer at another size."""
        return _grid(self.stride, latents)

    def positions(self, device: torch.device | None = None) -> Float[Tensor, "tokens 2"]:
        """Return the centres (x, y) of the tokens, in units of the image diagonal."""
        return _centres(self.height, self.width, self.aspect, device)


@functools.lru_cache(maxsize=256)  # few grids, and every call of every layer needs one
def token_grid(tokens: int, latents: Latents) -> TokenGrid | None:
    """Return the grid with this number of tokens; None if none has it.

    >>> token_grid(16, Latents(height=8, width=8, patch=1))
    TokenGrid(height=4, width=4, stride=2, aspect=1.0)
    """
    return next((grid for grid in grids(latents) if grid.tokens == tokens), None)


def grids(latents: Latents) -> Iterator[TokenGrid]:
    """Yield the grids that a denoiser may have, finest first. Each has half the height and width of the one before."""
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
