"""The sampled images of a report: all prompts and seeds behind a selector, at equal height."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
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

CAPTION = (
    "Rows are laws, columns are sizes (height x width). Click an image to enlarge it. Known defects: cut-off shapes at "
    "small sizes, repeated shapes at large sizes."
)

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
class Column:
    """A column of images: one size of one run.

    Attributes:
        title: title of the column.
        sampled: the images.
        size: (height, width) in pixels.
    """

    title: str
    sampled: Sweep
    size: Size

    def image(self, prompt: str, seed: int, law: str, pixels: float) -> GalleryImage | None:
        """Return an image with at most this number of pixels; None if the law was not sampled."""
        if law not in [one.name for one in self.sampled.grid.laws]:
            return None
        label = f"{law}, {self.title}, “{for_html(prompt)}”, seed {seed}"
        return GalleryImage(_data_url(self.sampled.image(prompt, self.size, seed, law), pixels), label, *self.size)


@dataclass(frozen=True)
class ImageSet:
    """The images of a prompt and a seed.

    Attributes:
        prompt: the prompt.
        seed: the seed.
        rows: a row for each law, with an image for each column. None if it was not sampled.
    """

    prompt: str
    seed: int
    rows: dict[str, tuple[GalleryImage | None, ...]]


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

    @property
    def first(self) -> GalleryImage:
        """The first image."""
        return next(image for row in self.sets[0].rows.values() for image in row if image)


def gallery(results: RunResults) -> Gallery:
    """Return the images of a run. Of a large run, the prompts whose images the laws change most and least."""
    sampled = results.sampled
    columns = [Column(f"{format_size(size)} px", sampled, size) for size in _by_area(sampled)]
    per_set = len(columns) * len(sampled.grid.laws)
    seeds = sampled.grid.seeds[: max(1, MAX_IMAGES // per_set)]
    prompts, changes = _shown_prompts(sampled, max(1, MAX_IMAGES // (per_set * len(seeds))))
    frame = results.frame
    table = image_table(frame[frame["prompt"].isin(prompts) & frame["seed"].isin(seeds)], results.quality)
    caption = f"{_left_out(sampled, prompts, seeds, changes)}{CAPTION}"
    return Gallery(tuple(c.title for c in columns), _sets(columns, prompts, seeds), caption, table)


def gallery_of_runs(runs: Mapping[str, RunResults]) -> Gallery | None:
    """Return the images of several runs side by side, for the prompts and seeds that all share; None without any."""
    grids = [run.sampled.grid for run in runs.values()]
    prompts = [prompt for prompt in grids[0].prompts if all(prompt in grid.prompts for grid in grids)]
    seeds = [seed for seed in grids[0].seeds if all(seed in grid.seeds for grid in grids)]
    if not (prompts and seeds):
        return None
    sizes = sorted({size for grid in grids for size in grid.sizes}, key=lambda size: (size[0] * size[1], size))
    columns = [
        Column(f"{format_size(size)} px, {name}", run.sampled, size)
        for size in sizes
        for name, run in runs.items()
        if size in run.sampled.grid.sizes
    ]
    laws = {law.name for grid in grids for law in grid.laws}
    per_set = len(columns) * len(laws)
    seeds = seeds[: max(1, MAX_IMAGES // per_set)]
    prompts = prompts[: max(1, MAX_IMAGES // (per_set * len(seeds)))]
    tables = [image_table(run.frame, run.quality).assign(run=name) for name, run in runs.items()]
    table = pd.concat(tables, ignore_index=True)
    table = table[table["prompt"].isin(prompts) & table["seed"].isin(seeds)]
    return Gallery(tuple(c.title for c in columns), _sets(columns, prompts, seeds), CAPTION, table)


def _by_area(sampled: Sweep) -> list[Size]:
    return sorted(sampled.grid.sizes, key=lambda size: (size[0] * size[1], size))


def _sets(columns: Sequence[Column], prompts: Sequence[str], seeds: Sequence[int]) -> tuple[ImageSet, ...]:
    """Return the images of all prompts and seeds. They share the pixels that a page has."""
    laws = list(dict.fromkeys(law.name for column in columns for law in column.sampled.grid.laws))
    pixels = min(IMAGE_PIXELS, TOTAL_PIXELS / (len(laws) * len(columns) * len(seeds) * len(prompts)))
    return tuple(
        ImageSet(
            for_html(prompt),
            seed,
            {law: tuple(column.image(prompt, seed, law, pixels) for column in columns) for law in laws},
        )
        for prompt in prompts
        for seed in seeds
    )


def _shown_prompts(sampled: Sweep, count: int) -> tuple[list[str], dict[str, float]]:
    """Return up to `count` prompts in the order of the grid, and the change of their images if not all are shown."""
    if len(sampled.grid.prompts) <= count:
        return list(sampled.grid.prompts), {}
    changes = dict(chosen_prompts(sampled, count))
    return [prompt for prompt in sampled.grid.prompts if prompt in changes], changes


def _left_out(sampled: Sweep, prompts: Sequence[str], seeds: Sequence[int], changes: dict[str, float]) -> str:
    """Say which prompts and seeds are not shown."""
    grid, text = sampled.grid, ""
    if changes:
        text += (
            f"{len(prompts)} of {len(grid.prompts)} prompts: the laws change the images of one half most, and of the "
            "other half least. "
        )
    if len(seeds) < len(grid.seeds):
        text += f"{len(seeds)} of {len(grid.seeds)} seeds. "
    return text


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
