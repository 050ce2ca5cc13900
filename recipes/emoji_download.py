"""Download the icon packages with npm, and select the emoji that the models are trained on."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.progress import track

from entropy_probe.reference.drawings import Emoji

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


def images(
    emoji: list[Emoji], height: int, width: int | None = None, cache: Path | None = None
) -> UInt8[np.ndarray, "count height width 3"]:
    """Draw every emoji at one size; with `cache`, keep the array in that folder."""
    width = height if width is None else width
    digest = hashlib.sha256("".join(e.style + e.name + e.svg for e in emoji).encode()).hexdigest()[:12]
    stored = cache / f"images-{height}x{width}-{digest}.npy" if cache else None
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
