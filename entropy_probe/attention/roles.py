"""Classify an attention call by its shapes: which tokens attend to which, and over which axes."""

from __future__ import annotations

import functools
import re
from typing import Literal

from entropy_probe.attention.grid import TokenGrid, grids, token_grid
from entropy_probe.attention.latents import Latents

Kind = Literal["self", "cross", "joint", "text"]
"""`self`: image tokens attend to image tokens; `cross`: image tokens attend to other tokens; `joint`: image and text
tokens share one softmax; `text`: text tokens attend to text tokens. A model without an image has `self` and `cross`."""

Axes = Literal["spatial", "temporal", "spatio-temporal"]
"""What one attention spans; `spatial` for images."""

VISUAL: tuple[Kind, ...] = ("self", "joint")
"""The kinds whose number of tokens grows with the image. Scaling laws act on these."""

_OF_TEXT = re.compile(r"context_refiner|context_embedder|token_refiner|pooler|caption|(^|[._])text")
_OF_TIME = re.compile(r"temporal|temp_attention|motion|transformer_in")


@functools.lru_cache(maxsize=1024)  # every step repeats the same calls
def role(
    layer: str, queries: int, keys: int, context: int | None, latents: Latents | None
) -> tuple[Kind, Axes, TokenGrid | None]:
    """Return the kind and the axes of a call, and the grid of the image tokens among its queries, or None.

    Shapes decide. If they leave it open, because words or frames have the same number as image tokens, the name of
    the layer decides.

    Args:
        layer: name of the attention layer.
        queries: number of queries.
        keys: number of keys.
        context: number of text tokens that the layer receives in addition to its own; None if there are none.
        latents: size of the denoiser's input; None for a model without an image.

    >>> from entropy_probe.attention.latents import Latents
    >>> role("mid.attn1", 64, 64, None, Latents(8, 8))[0], role("mid.attn2", 64, 77, 77, Latents(8, 8))[0]
    ('self', 'cross')
    """
    if latents is None:
        return "self" if queries == keys else "cross", "spatial", None
    if _OF_TEXT.search(layer):
        return "text", "spatial", None
    if queries == latents.frames > 1 and (_OF_TIME.search(layer) or token_grid(queries, latents) is None):
        return "self" if queries == keys else "cross", "temporal", None
    axes: Axes = "spatial"
    grid = token_grid(queries, latents)
    if latents.frames > 1 and grid is None and queries % latents.frames == 0:
        axes, grid = "spatio-temporal", token_grid(queries // latents.frames, latents)
    if grid is not None:
        if context is not None and keys == queries + context:
            return "joint", axes, grid
        return "self" if queries == keys != context else "cross", axes, grid
    finest = next(grids(latents))
    if queries == keys > finest.tokens * latents.frames:
        return "joint", "spatial" if latents.frames == 1 else "spatio-temporal", finest
    return "self" if queries == keys else "cross", "spatial", None
