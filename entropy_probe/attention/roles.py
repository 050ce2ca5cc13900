"""Classify an attention call by its shapes: which tokens attend to which, and over which axes."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from entropy_probe.attention.grid import TokenGrid, grids, token_grid
from entropy_probe.attention.latents import Latents

Kind = Literal["self", "shared", "cross", "joint", "text", "unknown"]
"""Which tokens attend to which.

- `self`: the tokens of an image to the tokens of the same image.
- `shared`: the tokens of an image to those of several images. N and T count the image tokens among the keys.
- `cross`: image tokens to other tokens.
- `joint`: image tokens and others share one softmax.
- `text`: text tokens to text tokens.
- `unknown`: the number of tokens has no relation to the image that could be found, as with sound or windows.

A model without an image has `self` and `cross`."""

Axes = Literal["spatial", "temporal", "spatio-temporal"]
"""What one attention spans; `spatial` for images."""

VISUAL: tuple[Kind, ...] = ("self", "shared", "joint")
"""The kinds whose number of tokens grows with the image. Scaling laws act on these."""

_OF_TEXT = re.compile(r"context_refiner|context_embedder|token_refiner|pooler|caption|(^|[._])text")
_OF_TIME = re.compile(r"temporal|temp_attention|motion|transformer_in")


@dataclass(frozen=True)
class Surroundings:
    """What a call receives in addition to its own tokens.

    Attributes:
        contexts: numbers of tokens that the layer receives in addition to its own.
        texts: numbers of tokens of the texts that the denoiser receives.
        joined: lengths of the tensors that were concatenated into the keys, one after the other; empty if unknown.
        images: number of batch items of the denoiser that one item of the call covers.
        configured: see `Forward`.
        sampled: the model has a configuration and receives a timestep, so it samples images, sound or videos.
    """

    contexts: frozenset[int] = frozenset()
    texts: frozenset[int] = frozenset()
    joined: tuple[int, ...] = ()
    images: int = 1
    configured: bool = True
    sampled: bool = False


@functools.lru_cache(maxsize=1024)  # every step repeats the same calls
def role(
    layer: str, queries: int, keys: int, latents: Latents | None, around: Surroundings = Surroundings()
) -> tuple[Kind, Axes, TokenGrid | None]:
    """Return the kind and the axes of a call, and the grid of the image tokens among its queries, or None.

    Shapes decide. If they leave it open, because words or frames have the same number as image tokens, the name of
    the layer decides.

    Args:
        layer: name of the attention layer.
        queries: number of queries.
        keys: number of keys.
        latents: size of the denoiser's input; None for a model without an image.
        around: what the call receives in addition to its own tokens.

    >>> from entropy_probe.attention.latents import Latents
    >>> role("mid.attn1", 64, 64, Latents(8, 8))[0]
    'self'
    >>> role("mid.attn2", 64, 77, Latents(8, 8), Surroundings(contexts=frozenset([77])))[0]
    'cross'
    """
    if latents is None:
        if around.sampled and queries == keys and not _OF_TEXT.search(layer):
            return "unknown", "spatial", None
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
        return _kind_of_image_queries(queries, keys, around), axes, grid
    return _of_other_queries(queries, keys, latents, around)


def _kind_of_image_queries(queries: int, keys: int, around: Surroundings) -> Kind:
    extra = keys - queries
    if extra in around.contexts:
        of_images = extra > 0 and extra % queries == 0 and around.texts and extra not in around.texts
        return "shared" if of_images else "joint"
    if keys in around.contexts:
        return "cross"
    if extra == 0:
        return "self"
    if around.contexts:
        return "cross"
    own = around.joined.count(queries)
    if own == 1:  # registers next to the image
        return "joint"
    return "shared" if keys % queries == 0 and own in (0, len(around.joined)) else "unknown"


def _of_other_queries(
    queries: int, keys: int, latents: Latents, around: Surroundings
) -> tuple[Kind, Axes, TokenGrid | None]:
    """Return the role of a call whose number of queries is that of no grid."""
    if queries != keys:
        return "cross", "spatial", None
    finest = next(grids(latents))
    if around.images > 1 and queries % around.images == 0 and not around.contexts:
        grid = token_grid(queries // around.images, latents)
        if grid is not None:
            return "shared", "spatial", grid
    if queries > finest.tokens * latents.frames:
        return "joint", "spatial" if latents.frames == 1 else "spatio-temporal", finest
    # Next to a class token, registers or a text. One or two tokens are not an image.
    images = [grid for part in around.joined if part > 2 and (grid := token_grid(part, latents)) is not None]
    if len(images) == 1:
        return "joint", "spatial", images[0]
    return "unknown" if around.configured else "self", "spatial", None
