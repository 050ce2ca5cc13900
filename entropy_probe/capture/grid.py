"""How the tokens of a visual attention lie on the image."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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

    def at(self, latent_size: tuple[int, int]) -> TokenGrid:
        """The grid of the same layer at another latent size (height, width)."""
        return _grid(self.stride, latent_size)

    def positions(self) -> Float[Tensor, "tokens 2"]:
        """Token centres, (x, y), in units of the image diagonal."""
        return _centres(self.height, self.width, self.aspect)


@functools.lru_cache(maxsize=256)  # every call of every layer asks for one of few
def token_grid(tokens: int, latent_size: tuple[int, int]) -> TokenGrid | None:
    """The grid with that many tokens whose stride is a power of two; None where there is none."""
    stride = 1
    while stride < 2 * max(latent_size):
        grid = _grid(stride, latent_size)
        if grid.tokens == tokens:
            return grid
        stride *= 2
    return None


def _grid(stride: int, latent_size: tuple[int, int]) -> TokenGrid:
    height, width = latent_size
    return TokenGrid(-(-height // stride), -(-width // stride), stride, height / width)


@functools.lru_cache(maxsize=64)
def _centres(height: int, width: int, aspect: float) -> Float[Tensor, "tokens 2"]:
    diagonal = math.hypot(aspect, 1.0)
    y = (torch.arange(height) + 0.5) / height * aspect / diagonal
    x = (torch.arange(width) + 0.5) / width / diagonal
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)
