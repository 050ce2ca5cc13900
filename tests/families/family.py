"""One model family: how to build it small, what to feed it, and what its attention is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

Kind = Literal["self", "cross", "joint", "text"]
Axes = Literal["spatial", "temporal", "spatio-temporal"]


@dataclass(frozen=True)
class Attention:
    """The attention of the layers that a glob matches.

    Attributes:
        kind: `self`: image (or video) tokens only; `cross`: image queries, other keys; `joint`: image and text keys in
            one softmax; `text`: text tokens only.
        stride: latent pixels per token, along height and width; 0 if the queries are not image tokens.
        axes: the axes over which one call attends.
    """

    kind: Kind
    stride: int
    axes: Axes = "spatial"


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: common name.
        pipeline: class of the diffusers pipeline.
        build: returns a small denoiser of the real class, with random weights.
        inputs: keyword arguments of its forward for a batch of two, given the model and the latent height and width.
        attention: the expected attention, by glob over the names of the layers.
        linear: globs of attention layers without a softmax.
        hidden: modules whose attention does not use torch's function and cannot be measured.
        image: position of the image tokens in a joint attention, from the source of the model; `unknown` if capture
            cannot determine it; None without joint attention.
        frames: latent frames of the inputs; None for images.
        notes: for the page of models.
        sizes: latent heights and widths to test.
    """

    name: str
    pipeline: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, int, int], dict[str, Any]]
    attention: dict[str, Attention]
    linear: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    image: Literal["first", "last", "unknown"] | None = None
    frames: int | None = None
    notes: str = ""
    sizes: tuple[tuple[int, int], ...] = field(default=((8, 8), (16, 16), (8, 16)))
