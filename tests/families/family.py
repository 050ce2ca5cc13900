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
        kind: `self`: image (or video) tokens among themselves; `cross`: they attend to something else; `joint`: image
            and text tokens in one softmax; `text`: words among themselves.
        stride: latent pixels that a token stands for, along height and width; 0 where queries are no image tokens.
        axes: what one attention spans.
    """

    kind: Kind
    stride: int
    axes: Axes = "spatial"


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: as the field calls it.
        pipeline: the diffusers pipeline that drives it.
        build: the denoiser, of the real class, small, with random weights.
        inputs: keyword arguments of its forward for a batch of two, for latents of a height and a width.
        attention: what each layer is, by glob over the names of the modules that attend.
        linear: globs of attention layers that have no softmax.
        hidden: modules whose attention is not torch's own call, and cannot be seen.
        image: position of the image tokens in a joint attention, from the source code of the model; `unknown` if
            capture cannot find it; None without joint attention.
        frames: latent frames of the inputs; None for images.
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
