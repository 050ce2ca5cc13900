"""Download the icon packages with npm, and select the emoji on which the bundled models are trained."""

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
"""A style that no bundled model was trained on (CC-BY-4.0), to test the critic."""

_SKIN_TONE = re.compile(r"-(medium-)?(light|dark|medium)(-skin-tone)?(-|$)")
_EXCLUDED = re.compile(
    r"^keycap|^letter-|^input-|^flag-for|-oclock$|-thirty$|^japanese-.*button$|^family-|^kiss-|^couple-with-heart-"
)


def download(folder: Path, packages: Mapping[str, str] = PACKAGES) -> None:
    """Download the pinned icon packages into `folder` with the npm client.

    Raises:
        RuntimeError: if npm is missing or cannot download a package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for style, package in packages.items():
        if (folder / style / "package" / "icons.json").exists():
            continue
        try:
            subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise RuntimeError(
                "npm is required to download the icon packages, but was not found: install Node.js"
            ) from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"npm could not download {package}: {error.stderr.strip()}") from error
        name = package[1:].replace("/", "-").replace("@", "-") + ".tgz"
        with tarfile.open(folder / name) as archive:
            archive.extractall(folder / style, filter="data")


def select_emoji(folder: Path, packages: Mapping[str, str] = PACKAGES) -> list[Emoji]:
    """Return the emoji of downloaded packages, in a fixed order.

    Skin-tone variants, flags, keycaps, clocks, letters and gendered variants are excluded.
    """
    chosen = []
    for style in packages:
        package = folder / style / "package"
        icons = json.loads((package / "icons.json").read_text())
        categories = json.loads((package / "metadata.json").read_text())["categories"]
        category_of = {name: category for category, names in categories.items() for name in names}
        for name in sorted(category_of.keys() & icons["icons"].keys()):
            if category_of[name] == "Flags" or not is_selected(name, category_of.keys()):
                continue
            icon = icons["icons"][name]
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", 16))
            side = max(width, height)
            box = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
            chosen.append(Emoji(style, name, category_of[name], svg))
    return chosen


def render(
    emoji: list[Emoji], height: int, width: int | None = None, cache: Path | None = None
) -> UInt8[np.ndarray, "count height width 3"]:
    """Return images of every emoji at one size.

    Args:
        emoji: the emoji.
        height: in pixels.
        width: in pixels; the height if None.
        cache: folder in which the array is stored for the next call.
    """
    width = height if width is None else width
    digest = hashlib.sha256("".join(e.style + e.name + e.svg for e in emoji).encode()).hexdigest()[:12]
    stored = cache / f"images-{height}x{width}-{digest}.npy" if cache else None
    if stored and stored.exists():
        loaded: UInt8[np.ndarray, "count height width 3"] = np.load(stored)
        return loaded
    rendered = np.stack([e.draw(height, width) for e in track(emoji, f"rendering at {height}x{width}")])
    if stored:
        np.save(stored, rendered)
    return rendered


def is_selected(name: str, names: Set[str]) -> bool:
    """Return whether an emoji is not one of the variants that `select_emoji` excludes.

    >>> is_selected("person-surfing", {"person-surfing"}), is_selected("man-surfing", {"person-surfing"})
    (True, False)
    """
    if _EXCLUDED.search(name):
        return False
    tone = _SKIN_TONE.search(name)
    if tone and (name[: tone.start()] in names or "skin-tone" in name or tone.group(2) != "medium"):
        return False
    gendered = re.match(r"(man|woman|men|women)-(.+)", name)
    return not (gendered and ({f"person-{gendered[2]}", f"people-{gendered[2]}", gendered[2]} & names))
