"""One call of `scaled_dot_product_attention`: its layer, its tokens, and its tensors in four dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from entropy_probe.attention.grid import TokenGrid
from entropy_probe.attention.latents import Latents
from entropy_probe.attention.roles import VISUAL, Axes, Kind


@dataclass(frozen=True)
class Forward:
    """One forward pass of the denoiser.

    Attributes:
        number: counts the passes since the first hook was set; -1 outside a pass.
        timestep: as the denoiser received it; None if its `forward` has no such argument.
        latents: size of the input; None if it is unknown.
        trained: size of the latents in training; None if it is unknown.
        trained_frames: frames of tokens of the videos in training; None if they are unknown.
        batch: items of the input; None if it is unknown.
        texts: numbers of tokens of the texts among its arguments.
        configured: the denoiser has a configuration. Without one, an input of four dimensions need not be an image.
        arguments: all arguments of the denoiser, by name. Empty once the pass is over.
    """

    number: int = -1
    timestep: Tensor | float | int | None = None
    latents: Latents | None = None
    trained: Latents | None = None
    trained_frames: int | None = None
    batch: int | None = None
    texts: frozenset[int] = frozenset()
    configured: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class AttentionCall:
    """One call of `scaled_dot_product_attention`, before the kernel runs.

    Attributes:
        forward: the forward pass of the denoiser that makes the call.
        layer: name of the attention layer.
        kind: which tokens attend to which.
        axes: what one attention spans.
        grid: layout of the image tokens among the queries; None if they are not image tokens, or if it is unknown.
        image_keys: the keys of a joint attention that are image tokens; None elsewhere, or if they are unknown.
        first_item: index of the call's first item in the layer's batch. A layer may split its batch over several calls.
            None if the layer received only a part of the batch of the denoiser, and it is unknown which.
        items_per_sample: items of the layer's batch per sample of the denoiser: the frames, or positions, of a video.
            Below 1 if an item covers several samples, whose attention is shared.
        query: queries, in four dimensions.
        key: keys, in four dimensions.
        mask: as the model passes it, broadcastable to four dimensions.
        is_causal: as the model passes it.
        scale: scale of the logits.
        enable_gqa: as the model passes it.
    """

    forward: Forward
    layer: str
    kind: Kind
    axes: Axes
    grid: TokenGrid | None
    image_keys: slice | None
    first_item: int | None
    items_per_sample: int | Fraction
    query: Float[Tensor, "batch heads queries width"]
    key: Float[Tensor, "batch kv_heads keys width"]
    mask: Shaped[Tensor, "*#mask"] | None
    is_causal: bool
    scale: float
    enable_gqa: bool

    @property
    def visual(self) -> bool:
        """Whether the number of tokens grows with the image. Scaling laws act on these calls."""
        return self.kind in VISUAL and self.axes != "temporal"

    @property
    def tokens(self) -> int:
        """N: the image tokens of a visual attention, over all its frames. Without a grid, the number of queries.

        If images share their attention, the tokens of all the images among the keys.
        """
        if self.kind == "shared":
            return self.key.shape[2]
        return self.query.shape[2] if self.grid is None else self.grid.tokens * self._frames

    @property
    def training_tokens(self) -> int | None:
        """T: N at the training size and at the training length of videos; None if the size is unknown.

        If the length is unknown, T counts the frames of this call.
        """
        if not self.visual or self.grid is None or self.forward.trained is None:
            return None
        frames = self._frames
        if self.axes == "spatio-temporal" and self.forward.trained_frames is not None:
            frames = self.forward.trained_frames
        trained = self.grid.at(self.forward.trained).tokens * frames
        if self.kind == "shared":
            return trained * self.key.shape[2] // (self.grid.tokens * self._frames)
        return trained

    @property
    def image_queries(self) -> slice:
        """The queries that are image tokens: all, unless some are known to be text."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        return self.image_keys if self.image_keys is not None and queries == keys else slice(0, queries)

    @property
    def positions(self) -> Float[Tensor, "tokens 2"] | None:
        """Centres of the image tokens of a spatial attention, in image diagonals; None if they are unknown."""
        if self.grid is None or self.axes != "spatial" or not (self.kind == "self" or self.image_keys is not None):
            return None
        return self.grid.positions(self.query.device)

    @property
    def _frames(self) -> int:
        return frames(self.axes, self.forward.latents)


def frames(axes: Axes, latents: Latents | None) -> int:
    """Return the number of frames that one attention spans.

    >>> frames("spatio-temporal", Latents(8, 8, frames=3)), frames("spatial", Latents(8, 8, frames=3))
    (3, 1)
    """
    return latents.frames if latents and axes == "spatio-temporal" else 1


def four_dimensional(
    query: Tensor, key: Tensor, mask: Tensor | None, enable_gqa: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return query, key and mask of any attention call with four dimensions; views where possible.

    Two dimensions are one item with one head, three are items with one head, and of five or more all but the last
    three are items. Items and heads are broadcast, as `scaled_dot_product_attention` does.

    Returns:
        query (batch, heads, queries, width), key (batch, kv_heads, keys, width), and a mask that broadcasts to
        (batch, heads, queries, keys).

    >>> import torch
    >>> query, key, _ = four_dimensional(torch.zeros(3, 9, 8), torch.zeros(1, 5, 8), None, False)
    >>> query.shape, key.shape
    (torch.Size([3, 1, 9, 8]), torch.Size([3, 1, 5, 8]))
    """
    grouped = enable_gqa and query.ndim > 2 and key.ndim > 2
    heads_match = grouped or query.shape[-3:-2] == key.shape[-3:-2]
    if query.ndim == key.ndim == 4 and query.shape[0] == key.shape[0] and heads_match:
        return query, key, mask
    ends = -3 if grouped else -2
    lead = torch.broadcast_shapes(query.shape[:ends], key.shape[:ends])

    def shaped(tensor: Tensor, single_head: bool) -> Tensor:
        if single_head:
            tensor = tensor.unsqueeze(-3)
        while tensor.ndim < 4:
            tensor = tensor[None]
        return tensor.flatten(0, tensor.ndim - 4)

    single_head = not grouped and len(lead) < 2
    if mask is not None and mask.ndim > 2:
        heads = (query.shape[-3],) if grouped else ()
        mask = shaped(mask.expand(*lead, *heads, *mask.shape[-2:]), single_head)
    query, key = (tensor.expand(*lead, *tensor.shape[ends:]) for tensor in (query, key))
    return shaped(query, single_head), shaped(key, single_head), mask


def unpack_heads(query: Tensor, mask: Tensor | None, groups: int) -> tuple[Tensor, Tensor | None]:
    """Return query and mask of a decoding step with one query per head, if the heads were packed as queries.

    For a single token, transformers passes the heads that share a key as the queries of one head.

    Args:
        query: (batch, kv_heads, groups, width).
        mask: broadcastable to (batch, kv_heads, groups, keys), or None.
        groups: the number of heads that share a key.

    Returns:
        query (batch, heads, 1, width), and a mask that broadcasts to (batch, heads, 1, keys). The keys are unchanged:
        the call has grouped heads.

    >>> import torch
    >>> unpack_heads(torch.zeros(3, 2, 4, 8), torch.zeros(3, 1, 1, 9), 4)[0].shape
    torch.Size([3, 8, 1, 8])
    """
    if mask is not None and mask.shape[-2] == groups:
        mask = mask.expand(*mask.shape[:-3], query.shape[1], *mask.shape[-2:]).flatten(-3, -2).unsqueeze(-2)
    return query.flatten(1, 2).unsqueeze(2), mask


def plain_mask(mask: Tensor | None, query: Tensor, key: Tensor) -> tuple[Tensor | None, bool]:
    """Return a mask without torch's `CausalBias` subclasses, and whether the call is causal from the upper left.

    >>> from torch.nn.attention.bias import causal_lower_right
    >>> mask, causal = plain_mask(causal_lower_right(1, 3), torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 3, 4))
    >>> mask.tolist(), causal
    ([[True, True, True]], False)
    """
    if type(mask).__name__ != "CausalBias":
        return mask, False
    variant: Any = mask
    if variant.variant.name == "UPPER_LEFT":
        return None, True
    queries, keys = query.shape[-2], key.shape[-2]
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    return allowed.tril(diagonal=keys - queries), False
