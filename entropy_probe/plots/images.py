"""Show sampled images, and entropy maps over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from entropy_probe.evaluation import Quality
from entropy_probe.models import Size, format_size
from entropy_probe.plots.panels import Plot, without_ticks
from entropy_probe.plots.tables import image_table
from entropy_probe.runs import Sweep
from entropy_probe.runs.entropy_maps import EntropyMap, map_table

GRID_PIXELS = 400_000
"""Maximum number of pixels in an image grid. Without a limit, a page of 1024 px images would have 100 MB."""


STRIP_PIXELS = 65_536
"""Maximum number of pixels of an image in a strip."""


def image_grid(
    sweep: Sweep, frame: pd.DataFrame, prompt: str, quality: Quality | None = None, pixels: float = GRID_PIXELS
) -> Plot:
    """Show the images of one prompt and the first seed: rows are laws, columns are sizes, all at the same scale.

    Args:
        sweep: the sampled grid.
        frame: its measurements.
        prompt: one of its prompts.
        quality: the metrics of its images, if they were scored.
        pixels: maximum number of pixels in the figure; larger images are shrunk.

    Returns:
        The figure, and a row for each image; see `tables.image_table`.

    >>> import entropy_probe as ep
    >>> sizes = [(32, 32), (64, 64)]  # 64 is the training size
    >>> swept = ep.sweep(ep.reference.load(), prompts=["noto dog"], sizes=sizes, steps=1, progress=False)
    >>> figure, data = image_grid(swept, swept.frame(), "noto dog")
    >>> len(data)  # images
    2
    """
    sizes = sorted(sweep.grid.sizes, key=lambda s: s[0] * s[1])
    laws, seed = [law.name for law in sweep.grid.laws], sweep.grid.seeds[0]
    widest, highest = sum(w for _, w in sizes), max(h for h, _ in sizes)
    part = pixels / (len(laws) * sum(h * w for h, w in sizes))
    unit = min(8.0 / widest, 2.6 / highest)
    figure = Figure(figsize=(unit * widest + 0.9, len(laws) * (unit * highest + 0.15) + 0.3), layout="constrained")
    grid = figure.subplots(len(laws), len(sizes), squeeze=False, width_ratios=[w for _, w in sizes])
    for row, law in enumerate(laws):
        for axes, (height, width) in zip(grid[row], sizes, strict=True):
            image = _shrunk(sweep.image(prompt, (height, width), seed, law), part * height * width)
            axes.imshow(image, extent=(0, width, height, 0), interpolation="none")
            axes.plot([0, width, width, 0, 0], [0, 0, height, height, 0], color="0.75", linewidth=0.8, clip_on=False)
            axes.set_xlim(0, width)
            axes.set_ylim(height, height - highest)  # the lower edges of a row are aligned
            without_ticks(axes)
            sns.despine(ax=axes, left=True, bottom=True)
            if row == 0:
                axes.text(width / 2, -0.02 * highest, format_size((height, width)), ha="center", fontsize=9)
        grid[row, 0].set_ylabel(law, fontsize=9)
    own = frame[(frame["prompt"] == prompt) & (frame["seed"] == seed)]
    return figure, image_table(own, quality)


def image_strip(sweep: Sweep, prompt: str, width: float = 10.0) -> Plot:
    """Show the images of one prompt and the first seed at equal height: rows are laws, columns are sizes.

    Args:
        sweep: the sampled grid.
        prompt: one of its prompts.
        width: width of the figure, inches.

    Returns:
        The figure, and a row for each image: `law`, `size`.

    >>> import entropy_probe as ep
    >>> swept = ep.sweep(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], steps=1, progress=False)
    >>> image_strip(swept, "noto dog")[1].to_numpy().tolist()
    [['original', '32']]
    """
    sizes = sorted(sweep.grid.sizes, key=lambda s: s[0] * s[1])
    laws, seed = [law.name for law in sweep.grid.laws], sweep.grid.seeds[0]
    widths = [across / up for up, across in sizes]
    unit = min(1.6, (width - 0.1 * width) / sum(widths))  # inches
    figure = Figure(figsize=(width, unit * len(laws) + 0.4), layout="constrained")
    grid = figure.subplots(len(laws), len(sizes), squeeze=False, width_ratios=widths)
    for row, law in enumerate(laws):
        for axes, size in zip(grid[row], sizes, strict=True):
            image = _shrunk(sweep.image(prompt, size, seed, law), STRIP_PIXELS)
            axes.imshow(image, interpolation="none")
            without_ticks(axes)
            if row == 0:
                axes.set_title(f"{format_size(size)} px", fontsize=9)
        grid[row][0].set_ylabel(law, fontsize=9)
    return figure, pd.DataFrame([{"law": law, "size": format_size(size)} for law in laws for size in sizes])


def maps_over_images(maps: Sequence[EntropyMap]) -> Plot:
    """Show sampled images, and below each the entropy of its tokens over a grey copy, on one colour scale.

    Returns:
        The figure, and its data; see `runs.entropy_maps.map_table`.

    >>> one = EntropyMap(Image.new("RGB", (16, 16)), np.ones((2, 2)), (16, 16), layer="mid", step=0, law="original")
    >>> figure, data = maps_over_images([one])
    >>> len(data)  # rows of tokens
    2
    """
    widths = [one.size[1] / one.size[0] for one in maps]
    figure = Figure(figsize=(2.6 * sum(widths) + 0.8, 5.6), layout="constrained")
    grid = figure.subplots(2, len(maps), squeeze=False, width_ratios=widths)
    low = min(float(m.values.min()) for m in maps)
    high = max(float(m.values.max()) for m in maps)
    for column, one in enumerate(maps):
        height, width = one.size
        image = _shrunk(one.image, GRID_PIXELS / len(maps))
        grid[0, column].imshow(image, extent=(0, width, height, 0), interpolation="none")
        grid[0, column].set_title(f"{one.law}, {format_size(one.size)}", fontsize=9)
        shown = draw_map(grid[1, column], image, one.values, one.size, low, high)
        grid[1, column].set_title(f"mean {float(np.mean(one.values)):.2f} nats", fontsize=9)
        without_ticks(grid[0, column])
    figure.colorbar(shown, ax=grid[1, :].tolist(), label="entropy, nats", shrink=0.85, pad=0.02)
    return figure, map_table(maps)


def draw_map(
    axes: Axes,
    image: Image.Image,
    values: Float[np.ndarray, "grid_height grid_width"],
    size: Size,
    low: float | None = None,
    high: float | None = None,
) -> AxesImage:
    """Draw a value for every token over a grey copy of the image, and return the coloured layer for a colour bar.

    Args:
        axes: where to draw.
        image: the sampled image.
        values: the values; they are also the data of the plot.
        size: (height, width) of the image in pixels.
        low: value at the lower end of the colour scale; by default, the minimum.
        high: value at the upper end; by default, the maximum.

    >>> values = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> draw_map(Figure().subplots(), Image.new("RGB", (16, 16)), values, (16, 16)).get_clim()
    (1.0, 4.0)
    """
    extent = (0, size[1], size[0], 0)
    # The copy is grey and pale, because colours of the image could be mistaken for values.
    grey = 0.4 + 0.6 * np.asarray(image.convert("L"), dtype=float) / 255
    axes.imshow(grey, extent=extent, cmap="gray", vmin=0, vmax=1, interpolation="none")
    without_ticks(axes)
    return axes.imshow(values, extent=extent, cmap="viridis", alpha=0.7, vmin=low, vmax=high, interpolation="none")


def _shrunk(image: Image.Image, pixels: float) -> Image.Image:
    """Shrink an image to at most this number of pixels."""
    factor = math.sqrt(pixels / (image.width * image.height))
    if factor >= 1:
        return image
    return image.resize((max(1, int(factor * image.width)), max(1, int(factor * image.height))), Image.Resampling.BOX)
