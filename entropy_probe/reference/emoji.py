"""Captioned emoji drawn from vector files, at any size: the training data of the reference pipeline."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from rich.progress import track
from torch import Tensor

from entropy_probe.pipelines import Size

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
}
"""Style name -> npm package: Noto (Apache-2.0) and Fluent Emoji Flat (MIT)."""

UNSEEN = {"twemoji": "@iconify-json/twemoji@1.2.5"}
"""A style that nothing here is trained on (CC-BY-4.0), to see how the critic does on one."""

_SKIN_TONE = re.compile(r"-(medium-)?(light|dark|medium)(-skin-tone)?(-|$)")
_LEFT_OUT = re.compile(
    r"^keycap|^letter-|^input-|^flag-for|-oclock$|-thirty$|^japanese-.*button$|^family-|^kiss-|^couple-with-heart-"
)


@dataclass(frozen=True)
class Emoji:
    """One vector picture and its caption, for example `noto red apple`."""

    style: str
    name: str
    category: str
    svg: str

    @property
    def caption(self) -> str:
        """Style and name, in words."""
        return f"{self.style} {self.name.replace('-', ' ')}"

    def draw(self, height: int, width: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Draw on white. The picture fills the shorter side and is centred on the longer one."""
        width = height if width is None else width
        return draw(self.svg, height, width)


@dataclass(frozen=True)
class Drawings:
    """Captioned vectors, which can be had at any size: see `pipelines.Pictures`."""

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
    picture = Image.open(BytesIO(png)).convert("RGB")
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return np.asarray(canvas)


def fetch(folder: Path, packages: Mapping[str, str] = PACKAGES) -> None:
    """Download the pinned icon packages into `folder` with the npm client.

    Raises:
        RuntimeError: if npm is missing or cannot get a package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for style, package in packages.items():
        if (folder / style / "package" / "icons.json").exists():
            continue
        try:
            subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise RuntimeError("npm was not found: install Node.js, it fetches the icon packages") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"npm could not fetch {package}: {error.stderr.strip()}") from error
        name = package[1:].replace("/", "-").replace("@", "-") + ".tgz"
        with tarfile.open(folder / name) as archive:
            archive.extractall(folder / style, filter="data")


def load(folder: Path, packages: Mapping[str, str] = PACKAGES) -> list[Emoji]:
    """The selection: no skin-tone variants, flags, keycaps, clocks, letters or gendered doubles."""
    chosen = []
    for style in packages:
        package = folder / style / "package"
        icons = json.loads((package / "icons.json").read_text())
        categories = json.loads((package / "metadata.json").read_text())["categories"]
        category_of = {name: category for category, names in categories.items() for name in names}
        for name in sorted(category_of.keys() & icons["icons"].keys()):
            if category_of[name] == "Flags" or not _kept(name, category_of.keys()):
                continue
            icon = icons["icons"][name]
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", 16))
            side = max(width, height)
            box = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
            chosen.append(Emoji(style, name, category_of[name], svg))
    return chosen


def pictures(
    emoji: list[Emoji], height: int, width: int | None = None, cache: Path | None = None
) -> UInt8[np.ndarray, "count height width 3"]:
    """Draw every emoji at one size; with `cache`, keep the array in that folder."""
    width = height if width is None else width
    digest = hashlib.sha256("".join(e.style + e.name + e.svg for e in emoji).encode()).hexdigest()[:12]
    stored = cache / f"pictures-{height}x{width}-{digest}.npy" if cache else None
    if stored and stored.exists():
        loaded: UInt8[np.ndarray, "count height width 3"] = np.load(stored)
        return loaded
    drawn = np.stack([e.draw(height, width) for e in track(emoji, f"drawing at {height}x{width}")])
    if stored:
        np.save(stored, drawn)
    return drawn


def _kept(name: str, names: Set[str]) -> bool:
    if _LEFT_OUT.search(name):
        return False
    tone = _SKIN_TONE.search(name)
    if tone and (name[: tone.start()] in names or "skin-tone" in name or tone.group(2) != "medium"):
        return False
    gendered = re.match(r"(man|woman|men|women)-(.+)", name)
    return not (gendered and ({f"person-{gendered[2]}", f"people-{gendered[2]}", gendered[2]} & names))
