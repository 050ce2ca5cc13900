"""Captioned images that can be had at any size: what the denoising loss and the image metrics compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from entropy_probe.errors import InputError
from entropy_probe.models.sizes import Size

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class CaptionedImages(Protocol):
    """Captioned images; any object with these two members serves."""

    @property
    def captions(self) -> Sequence[str]:
        """One for each image."""
        ...

    def at(self, size: Size) -> UInt8[Tensor, "count 3 height width"]:
        """All of them at (height, width)."""
        ...


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, cropped in the middle to the shape that is asked for, and resized.

    The caption of `x.png` is the text of `x.txt` beside it, or else its name with `-` and `_` as spaces.

    Attributes:
        path: the folder.
        files: its images, by name.
        captions: theirs.
    """

    path: Path
    files: tuple[Path, ...]
    captions: tuple[str, ...]

    @classmethod
    def open(cls, path: str | Path) -> ImageFolder:
        """Look for images in a folder.

        Raises:
            InputError: if it is no folder or holds none.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"there is no folder of images {str(path)!r}")
        files = tuple(sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES))
        if not files:
            raise InputError(f"the folder {str(path)!r} holds no images ({', '.join(SUFFIXES)})")
        return cls(folder, files, tuple(_caption(file) for file in files))

    def __getitem__(self, chosen: slice) -> ImageFolder:
        return ImageFolder(self.path, self.files[chosen], self.captions[chosen])

    def at(self, size: Size) -> UInt8[Tensor, "count 3 height width"]:
        """All images at (height, width).

        Raises:
            InputError: naming a file that is no image.
        """
        return torch.stack([_fitted(file, size) for file in self.files])


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """An image as bytes, colours first."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def _caption(file: Path) -> str:
    text = file.with_suffix(".txt")
    return text.read_text().strip() if text.is_file() else file.stem.replace("-", " ").replace("_", " ")


def _fitted(file: Path, size: Size) -> UInt8[Tensor, "3 height width"]:
    try:
        with Image.open(file) as image:
            return to_tensor(ImageOps.fit(image.convert("RGB"), (size[1], size[0]), Image.Resampling.LANCZOS))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{file} cannot be read as an image: {error}") from error
