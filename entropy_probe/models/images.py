"""Captioned images at any size: the real images of the denoising loss and the image metrics."""

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
    """Interface of captioned images: any object with these two members."""

    @property
    def captions(self) -> Sequence[str]:
        """One caption per image."""
        ...

    def at(self, size: Size) -> UInt8[Tensor, "count 3 height width"]:
        """Return all images at (height, width), as bytes."""
        ...


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder. They are cropped around their centre to the requested shape, and resized.

    The caption of `red-apple.png` is the text of `red-apple.txt`. Without this file it is the name: `red apple`.

    Attributes:
        path: the folder.
        files: image files, sorted by name.
        captions: one caption per image.
    """

    path: Path
    files: tuple[Path, ...]
    captions: tuple[str, ...]

    @classmethod
    def open(cls, path: str | Path) -> ImageFolder:
        """Find the images in a folder.

        Raises:
            InputError: if the folder does not exist or has no images.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{str(path)!r} is not a folder: give a folder of images")
        files = tuple(sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES))
        if not files:
            raise InputError(f"the folder {str(path)!r} has no images: add files with {', '.join(SUFFIXES)}")
        return cls(folder, files, tuple(_caption(file) for file in files))

    def __getitem__(self, chosen: slice) -> ImageFolder:
        return ImageFolder(self.path, self.files[chosen], self.captions[chosen])

    def at(self, size: Size) -> UInt8[Tensor, "count 3 height width"]:
        """Return all images at (height, width), as bytes.

        Raises:
            InputError: if a file cannot be read as an image.
        """
        return torch.stack([_read(file, size) for file in self.files])


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """Return an image as bytes, with the colour channels first.

    >>> to_tensor(Image.new("RGB", (8, 4), "white")).shape
    torch.Size([3, 4, 8])
    """
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def _caption(file: Path) -> str:
    text = file.with_suffix(".txt")
    return text.read_text().strip() if text.is_file() else file.stem.replace("-", " ").replace("_", " ")


def _read(file: Path, size: Size) -> UInt8[Tensor, "3 height width"]:
    try:
        with Image.open(file) as image:
            return to_tensor(ImageOps.fit(image.convert("RGB"), (size[1], size[0]), Image.Resampling.LANCZOS))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"cannot read {file} as an image: {error}") from error
