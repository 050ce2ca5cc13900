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
from entropy_probe.models.sizes import MAX_SIDE, Size
from entropy_probe.paths import is_folder
from entropy_probe.strict_json import read_bounded

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

MAX_CAPTION_BYTES = 2**20
"""Maximum size of the file of a caption."""


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
            InputError: if the folder does not exist or has no images, or a caption is not UTF-8 text.
        """
        folder = Path(path)
        if not is_folder(folder):
            raise InputError(f"{str(path)!r} is not a folder: give a folder of images")
        files = tuple(sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file()))
        if not files:
            raise InputError(f"the folder {str(path)!r} has no images: add files with {', '.join(SUFFIXES)}")
        return cls(folder, files, tuple(_caption(file) for file in files))

    def __getitem__(self, chosen: slice) -> ImageFolder:
        return ImageFolder(self.path, self.files[chosen], self.captions[chosen])

    def at(self, size: Size) -> UInt8[Tensor, "count 3 height width"]:
        """Return all images at (height, width), as bytes.

        Raises:
            InputError: if a file cannot be read as an image, or has a side of more than `MAX_SIDE` pixels.
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
    if not text.exists():
        return file.stem.replace("-", " ").replace("_", " ")
    try:
        return read_bounded(text, MAX_CAPTION_BYTES).strip()
    except InputError as error:
        raise InputError(f"cannot read the caption of {file.name}: {error}: save it as UTF-8 text") from error


def _read(file: Path, size: Size) -> UInt8[Tensor, "3 height width"]:
    try:
        with Image.open(file) as image:
            if max(image.size) > MAX_SIDE:
                width, height = image.size
                raise InputError(f"it has {width} x {height} pixels, the maximum is {MAX_SIDE} per side: resize it")
            return to_tensor(ImageOps.fit(image.convert("RGB"), (size[1], size[0]), Image.Resampling.LANCZOS))
    except (Image.DecompressionBombError, UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"cannot read {file} as an image: {reason}") from error
