"""Captioned emoji drawn from vector files, at any size: the training data of the reference pipeline."""

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

from entropy_probe.models import Size


@dataclass(frozen=True)
class Emoji:
    """One vector image and its caption, for example `noto red apple`."""

    style: str
    name: str
    category: str
    svg: str

    @property
    def caption(self) -> str:
        """Style and name, in words."""
        return f"{self.style} {self.name.replace('-', ' ')}"

    def draw(self, height: int, width: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Draw on white. The image fills the shorter side and is centred on the longer one."""
        width = height if width is None else width
        return draw(self.svg, height, width)


@dataclass(frozen=True)
class Drawings:
    """Captioned vectors, which can be had at any size: see `pipelines.CaptionedImages`."""

    emoji: tuple[Emoji, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """Style and name of each."""
        return tuple(e.caption for e in self.emoji)

    def at(self, size: Size) -> UInt8[Tensor, "count 3 height width"]:
        """All of them, drawn at (height, width)."""
        return torch.from_numpy(np.stack([e.draw(*size) for e in self.emoji])).permute(0, 3, 1, 2).contiguous()

    def __getitem__(self, chosen: slice) -> Drawings:
        return Drawings(self.emoji[chosen])

    def save(self, path: Path) -> None:
        """Write them as compressed JSON, the same bytes every time."""
        text = json.dumps([asdict(e) for e in self.emoji], indent=0)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))

    @classmethod
    def open(cls, path: Path) -> Drawings:
        """What `save` wrote."""
        return cls(tuple(Emoji(**fields) for fields in json.loads(gzip.decompress(path.read_bytes()))))


def draw(svg: str, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Rasterise an SVG document, centred on a white canvas of `height` x `width` pixels."""
    import resvg_py

    side = min(height, width)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, background="#ffffff"))
    image = Image.open(BytesIO(png)).convert("RGB")
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return np.asarray(canvas)
