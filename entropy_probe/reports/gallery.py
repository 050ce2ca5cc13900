"""The sampled images of a report: all prompts and seeds behind a selector, at equal height."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from PIL import Image

from entropy_probe.escape import for_html
from entropy_probe.models import Size, format_size
from entropy_probe.plots.tables import image_table
from entropy_probe.reports.prompts import chosen_prompts
from entropy_probe.reports.results import RunResults
from entropy_probe.runs import Sweep

MAX_IMAGES = 480
"""Maximum number of images on a page. Reading the images of a large run would take minutes."""

TOTAL_PIXELS = 6_000_000
"""Maximum number of pixels of all images on a page: about 3 MB."""

IMAGE_PIXELS = 512 * 512
"""Maximum number of pixels of one image."""

SMALL = 128 * 128
"""Images up to this number of pixels are stored without loss."""


@dataclass(frozen=True)
class GalleryImage:
    """An image of the page.

    Attributes:
        source: data URL.
        label: what it shows: law, size, prompt and seed.
        height: height of the sampled image, pixels.
        width: width of the sampled image, pixels.
    """

    source: str
    label: str
    height: int
    width: int


@dataclass(frozen=True)
class ImageSet:
    """The images of a prompt and a seed: a row for each law, with an image for each size.

    Attributes:
        prompt: the prompt.
        seed: the seed.
        rows: images by law.
    """

    prompt: str
    seed: int
    rows: dict[str, tuple[GalleryImage, ...]]


@dataclass(frozen=True)
class Gallery:
    """Images by prompt and seed.

    Attributes:
        columns: titles of the columns.
        sets: the images; a page shows one set at a time.
        caption: text under the images.
        table: law, size, prompt, seed, mean entropy and metrics of each image.
    """

    columns: tuple[str, ...]
    sets: tuple[ImageSet, ...]
    caption: str
    table: pd.DataFrame

    @property
    def prompts(self) -> list[str]:
        """The prompts to choose from."""
        return list(dict.fromkeys(one.prompt for one in self.sets))

    @property
    def seeds(self) -> list[int]:
        """The seeds to choose from."""
        return list(dict.fromkeys(one.seed for one in self.sets))


def gallery(results: RunResults) -> Gallery:
    """Return the images of a run. Of a large run, the prompts whose images the laws change most and least."""
    sampled = results.sampled
    laws = [law.name for law in sampled.grid.laws]
    sizes = sorted(sampled.grid.sizes, key=lambda size: (size[0] * size[1], size))
    seeds = sampled.grid.seeds[: max(1, MAX_IMAGES // (len(laws) * len(sizes)))]
    prompts, changes = _shown_prompts(sampled, max(1, MAX_IMAGES // (len(laws) * len(sizes) * len(seeds))))
    pixels = min(IMAGE_PIXELS, TOTAL_PIXELS / (len(laws) * len(sizes) * len(seeds) * len(prompts)))
    sets = tuple(
        ImageSet(for_html(prompt), seed, {law: _row(sampled, prompt, seed, law, sizes, pixels) for law in laws})
        for prompt in prompts
        for seed in seeds
    )
    frame = results.frame
    table = image_table(frame[frame["prompt"].isin(prompts) & frame["seed"].isin(seeds)], results.quality)
    columns = tuple(f"{format_size(size)} px" for size in sizes)
    return Gallery(columns, sets, _caption(sampled, prompts, seeds, changes), table)


def _shown_prompts(sampled: Sweep, count: int) -> tuple[list[str], dict[str, float]]:
    """Return up to `count` prompts in the order of the grid, and the change of their images if not all are shown."""
    if len(sampled.grid.prompts) <= count:
        return list(sampled.grid.prompts), {}
    changes = dict(chosen_prompts(sampled, count))
    return [prompt for prompt in sampled.grid.prompts if prompt in changes], changes


def _caption(sampled: Sweep, prompts: Sequence[str], seeds: Sequence[int], changes: dict[str, float]) -> str:
    grid, parts = sampled.grid, []
    if changes:
        parts.append(
            f"{len(prompts)} of {len(grid.prompts)} prompts: the laws change the images of one half most, and of the "
            "other half least."
        )
    if len(seeds) < len(grid.seeds):
        parts.append(f"{len(seeds)} of {len(grid.seeds)} seeds.")
    parts.append(
        "Rows are laws, columns are sizes (height x width). Click an image to enlarge it. Known defects: cut-off "
        "shapes at small sizes, repeated shapes at large sizes."
    )
    return " ".join(parts)


def _row(
    sampled: Sweep, prompt: str, seed: int, law: str, sizes: Sequence[Size], pixels: float
) -> tuple[GalleryImage, ...]:
    return tuple(
        GalleryImage(
            _data_url(sampled.image(prompt, size, seed, law), pixels),
            f"{law}, {format_size(size)} px, “{for_html(prompt)}”, seed {seed}",
            *size,
        )
        for size in sizes
    )


def _data_url(image: Image.Image, pixels: float) -> str:
    """Return an image with at most this number of pixels: small ones as PNG, others as JPEG if that is smaller."""
    image = image.convert("RGB")
    factor = math.sqrt(pixels / (image.width * image.height))
    if factor < 1:
        size = max(1, int(factor * image.width)), max(1, int(factor * image.height))
        image = image.resize(size, Image.Resampling.BOX)
    encoded = {kind: io.BytesIO() for kind in (("png",) if image.width * image.height <= SMALL else ("png", "jpeg"))}
    for kind, buffer in encoded.items():
        image.save(buffer, kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    kind, buffer = min(encoded.items(), key=lambda item: item[1].tell())
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
