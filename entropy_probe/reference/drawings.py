"""Captioned emoji as vector images, drawn at any size: the training images of the bundled models."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from entropy_probe.extras import name_missing_extra
from entropy_probe.models import Size


@dataclass(frozen=True)
class Emoji:
    """One vector image.

    Attributes:
        style: emoji set, such as `noto`.
        name: name of the emoji, such as `red-apple`.
        category: category in the emoji set.
        svg: SVG document.
    """

    style: str
    name: str
    category: str
    svg: str

    @property
    def caption(self) -> str:
        """Style and name, such as `noto red apple`."""
        return f"{self.style} {self.name.replace('-', ' ')}"

    def draw(self, height: int, width: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Draw on white. The image fills the shorter side and is centred on the longer side.

        Args:
            height: height in pixels.
            width: width in pixels. By default, the height.
        """
        width = height if width is None else width
        return draw(self.svg, height, width)


@dataclass(frozen=True)
class Drawings:
    """Captioned vector images. Implements `models.CaptionedImages`."""

    emoji: tuple[Emoji, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """One caption per image."""
        return tuple(e.caption for e in self.emoji)

    def at(self, size: Size) -> UInt8[Tensor, "count 3 height width"]:
        """Draw all images at (height, width)."""
        return torch.from_numpy(np.stack([e.draw(*size) for e in self.emoji])).permute(0, 3, 1, 2).contiguous()

    def __getitem__(self, chosen: slice) -> Drawings:
        return Drawings(self.emoji[chosen])

    def save(self, path: Path) -> None:
        """Write compressed JSON. The same images give the same bytes."""
        text = json.dumps([asdict(e) for e in self.emoji], indent=0)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))

    @classmethod
    def open(cls, path: Path) -> Drawings:
        """Read a file that `save` wrote."""
        return cls(tuple(Emoji(**fields) for fields in json.loads(gzip.decompress(path.read_bytes()))))


def draw(svg: str, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draw an SVG document, centred on a white canvas of `height` x `width` pixels."""
    with name_missing_extra():
        import resvg_py

    side = min(height, width)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, background="#ffffff"))
    image = Image.open(BytesIO(png)).convert("RGB")
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return np.asarray(canvas)
