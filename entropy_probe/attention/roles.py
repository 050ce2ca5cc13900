"""What an attention call is, told from its shapes: whose tokens attend to whose, and over which axes."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from entropy_probe.attention.grid import TokenGrid, grids, token_grid
from entropy_probe.attention.latents import Latents

Kind = Literal["self", "cross", "joint", "text"]
"""`self`: tokens of the image among themselves; `cross`: they attend to something else; `joint`: image and text tokens
in one softmax; `text`: words among themselves. A model without an image knows `self` and `cross`."""

Axes = Literal["spatial", "temporal", "spatio-temporal"]
"""What one attention spans; `spatial` for all that is no video."""

VISUAL: tuple[Kind, ...] = ("self", "joint")
"""The kinds whose number of tokens grows with the image: what scaling laws act on."""

_OF_TEXT = re.compile(r"context_refiner|context_embedder|token_refiner|pooler|caption|(^|[._])text")
_OF_TIME = re.compile(r"temporal|temp_attention|motion|transformer_in")


@dataclass(frozen=True)
class Role:
    """What a call is; `grid` is how the image tokens among its queries lie, None where they do not."""

    kind: Kind
    axes: Axes
    grid: TokenGrid | None


@functools.lru_cache(maxsize=1024)  # every step asks the same
def role(layer: str, queries: int, keys: int, context: int | None, latents: Latents | None) -> Role:
    """The role of a call.

    Shapes decide; where they cannot (as many words as image tokens, as many frames), the name of the layer does.

    Args:
        layer: name of the attention layer.
        queries: how many.
        keys: how many.
        context: tokens of the text that the layer was given beside its own; None without.
        latents: what the denoiser runs on; None for a model without an image.
    """
    if latents is None:
        return Role("self" if queries == keys else "cross", "spatial", None)
    if _OF_TEXT.search(layer):
        return Role("text", "spatial", None)
    if queries == latents.frames > 1 and (_OF_TIME.search(layer) or token_grid(queries, latents) is None):
        return Role("self" if queries == keys else "cross", "temporal", None)
    axes: Axes = "spatial"
    grid = token_grid(queries, latents)
    if latents.frames > 1 and grid is None and queries % latents.frames == 0:
        axes, grid = "spatio-temporal", token_grid(queries // latents.frames, latents)
    if grid is not None:
        if context is not None and keys == queries + context:
            return Role("joint", axes, grid)
        return Role("self" if queries == keys != context else "cross", axes, grid)
    finest = next(grids(latents))
    if queries == keys > finest.tokens * latents.frames:
        return Role("joint", "spatial" if latents.frames == 1 else "spatio-temporal", finest)
    return Role("self" if queries == keys else "cross", "spatial", None)
