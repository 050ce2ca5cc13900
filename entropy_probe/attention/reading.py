"""Describe an attention call: its layer, its tokens, and the batch items that it covers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from entropy_probe.attention.call import AttentionCall, Forward, four_dimensional, frames, plain_mask
from entropy_probe.attention.calling_pipeline import first_item_left
from entropy_probe.attention.grid import TokenGrid
from entropy_probe.attention.joint import Join, context_lengths, own_input, parts_of, start_within
from entropy_probe.attention.latents import Latents
from entropy_probe.attention.roles import Axes, Surroundings, role
from entropy_probe.attention.thread_state import Running, ThreadState
from entropy_probe.statistics import default_scale


class CallReader:
    """Describes the attention calls of one denoiser.

    Attributes:
        trained: size of the latents in training; None if it is unknown.
        trained_frames: frames of tokens of the videos in training; None if they are unknown.

    Args:
        state: the forward pass that each thread runs.
    """

    def __init__(self, state: ThreadState) -> None:
        self.trained: Latents | None = None
        self.trained_frames: int | None = None
        self._state = state
        self._image_starts: dict[tuple[str, Latents | None], int | None] = {}
        self._joins: dict[Latents | None, dict[int, Join]] = {}
        self._past: dict[tuple[Any, ...], Forward] = {}

    def is_unlocated(self, layer: str) -> bool:
        """Whether the image tokens of a layer have not been located yet at the size of this pass."""
        forward = self._state.forward
        return forward is not None and (layer, forward.latents) not in self._image_starts

    def read(
        self,
        caller: Running,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> AttentionCall:
        """Return the description of a call.

        Args:
            caller: the module that makes the call.
            query: query, key and the other arguments of `scaled_dot_product_attention`.
            key: as `query`.
            mask: as `query`.
            is_causal: as `query`.
            scale: as `query`.
            enable_gqa: as `query`.
        """
        state, layer = self._state, caller.name
        mask, causal = plain_mask(mask, query, key)
        shape = query.shape
        query, key, mask = four_dimensional(query, key, mask, enable_gqa)
        forward = self._forward_of(layer, shape, key.shape)
        queries, keys = query.shape[2], key.shape[2]
        around = self._surroundings(caller, query.shape, keys, forward)
        kind, axes, grid = role(layer, queries, keys, forward.latents, around)
        joint_grid = grid if kind == "joint" and state.forward is not None else None
        spread = around.images if kind == "shared" and grid is not None and queries > grid.tokens else 1
        first_item, items_per_sample = (
            (0, Fraction(1, spread)) if spread > 1 else self._items(caller, query.shape, forward)
        )
        return AttentionCall(
            forward=forward,
            layer=layer,
            kind=kind,
            axes=axes,
            grid=grid,
            image_keys=None if joint_grid is None else self._image_keys(layer, joint_grid, axes, keys),
            first_item=first_item,
            items_per_sample=items_per_sample,
            query=query,
            key=key,
            mask=mask,
            is_causal=is_causal or causal,
            scale=default_scale(query) if scale is None else scale,
            enable_gqa=enable_gqa,
        )

    def _surroundings(self, caller: Running, query: torch.Size, keys: int, forward: Forward) -> Surroundings:
        """Return what a call receives in addition to its own tokens."""
        batch, queries = query[0], query[2]
        own = forward.batch or batch
        joins = {**self._joins.get(forward.latents, {}), **self._state.joins}
        return Surroundings(
            contexts=context_lengths(caller.args, caller.kwargs),
            texts=forward.texts,
            joined=parts_of(joins, keys, queries),
            images=own // batch if own % batch == 0 else 1,
            configured=forward.configured,
            sampled=forward.configured and forward.timestep is not None,
        )

    def keep_joins(self) -> None:
        """Keep the concatenations of a pass in which every module was watched. Later passes see those of layers."""
        state = self._state
        if state.forward is not None:
            self._joins[state.forward.latents] = dict(state.joins)

    def _forward_of(self, layer: str, query: torch.Size, key: torch.Size) -> Forward:
        """Return the forward pass that a call belongs to.

        Gradient checkpointing calls a layer again after its pass is over, on tensors of the same shapes.
        """
        state = self._state
        if state.forward is None:
            return self._past.get(
                (layer, query, key), Forward(trained=self.trained, trained_frames=self.trained_frames)
            )
        if state.finished is not None:
            self._past[layer, query, key] = state.finished
        return state.forward

    def _items(self, caller: Running, query: torch.Size, forward: Forward) -> tuple[int | None, int | Fraction]:
        """Return the call's first item in its layer's batch, and the items of that batch per sample."""
        given = own_input(caller.args, caller.kwargs)
        batch = query[0]
        whole = len(given) if isinstance(given, Tensor) and _in_parts(given.shape, query) else batch
        own = forward.batch or whole
        per_sample = whole // own if whole % own == 0 else 1
        begun = self._state.items[caller.name]
        self._state.items[caller.name] += batch
        if whole < own and isinstance(given, Tensor) and given.ndim > 2 and len(given) == batch:
            return self._first_item_left(batch, forward), 1
        return begun % (own * per_sample), per_sample

    def _first_item_left(self, items: int, forward: Forward) -> int | None:
        """Return the first item that a wrapper of the denoiser passed on; see `first_item_left`."""
        left = self._state.left
        if items not in left:
            left[items] = first_item_left(items, forward.arguments)
        return left[items]

    def _image_keys(self, layer: str, grid: TokenGrid, axes: Axes, keys: int) -> slice | None:
        """Return the keys of a joint attention that are image tokens; None if they cannot be located."""
        state = self._state
        latents = state.forward.latents if state.forward is not None else None
        start = self._image_starts.setdefault((layer, latents), None)
        if latents is None:
            return None
        tokens = grid.tokens * frames(axes, latents)
        before, others = latents.before, latents.before + latents.others
        found = start_within({**self._joins.get(latents, {}), **state.joins}, keys, tokens, others)
        if found is None and others and keys == tokens + others:
            found = 0
        start = start if found is None else found
        # Counted from the end, the start also holds for a text of another length in a later pass.
        self._image_starts[layer, latents] = start
        if start is None:
            return None
        first = before + (start if start >= 0 else keys + start)
        return slice(first, first + tokens) if 0 <= first <= keys - tokens else None


def _in_parts(given: torch.Size, query: torch.Size) -> bool:
    """Whether one call covers only some of the items that its layer received.

    False if the first axis of the input is not the batch, but tokens, or items times heads.
    """
    batch, heads, queries, width = query
    tokens_first = given[:2] == (queries, batch)
    heads_first = (given[0], given[-1]) == (batch * heads, width)
    return len(given) > 2 and given[0] > batch and not tokens_first and not heads_first
