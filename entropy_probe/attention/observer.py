"""One listener to the attention calls of a denoiser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from entropy_probe.attention.call import AttentionCall, Forward

ScaleFactor = float | Float[Tensor, " heads"] | None
"""Factor of the logits of a call: a number, one number per head, or None to leave them unchanged."""

OnCall = Callable[[AttentionCall], ScaleFactor]
"""Receive a call and return its scale factor: a number, one number per head, or None to leave the logits unchanged."""


@dataclass(eq=False)
class Observer:
    """One listener to the attention calls of a denoiser: a scaling law or a measurement.

    Attributes:
        on_call: see `OnCall`.
        after_scaling: receive the calls after all scaling.
        one_thread: refuse a forward pass while another thread runs one.
        layers: names of the attention layers, see `attention_layers`. The list follows changes of the model.
        on_forward: receives each forward pass of the denoiser before it runs.
        after_discovery: is called with this observer after the first forward pass of each size.
        stop: removes this observer. It may be called twice.
        ran: names of the layers that have run.
        seen: names of the modules that have made an attention call.
        unlocated: names of the joint attentions whose image tokens could not be located.
        unknown: names of the layers whose tokens could not be related to the image.
        unread: number of calls that could not be read, by layer and reason.
        warned: names of the layers that a warning has named.
        replacement: the function that another library has put in the place of torch's; None if there is none.
        by_hand: names of the modules that compute attention without such a call. The interception adds to this set.
    """

    on_call: OnCall
    after_scaling: bool
    one_thread: bool
    layers: list[str]
    on_forward: Callable[[Forward], None]
    after_discovery: Callable[[Observer], None]
    stop: Callable[[Observer], None]
    ran: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    unlocated: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)
    warned: set[str] = field(default_factory=set)
    replacement: Callable[..., Tensor] | None = None
    by_hand: set[str] = field(default_factory=set)
