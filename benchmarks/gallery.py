"""Make the image at the top of README.md from a run of a bundled model: `python -m benchmarks.gallery entropy-run`.

Fit and law are read from the run. The images are sampled again, with the same seed, to get their entropy maps.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure, SubFigure
from PIL import Image

import entropy_probe as ep
from entropy_probe.estimation import Derivation, Fit
from entropy_probe.laws import Paper, ScalingLaw, factors
from entropy_probe.models import Size, layers, sample_images
from entropy_probe.plots import PALETTE, draw_map, theme
from entropy_probe.runs import Sweep

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "gallery.png"
PROMPT = "noto dog face"


@dataclass(frozen=True)
class Example:
    """An image, and the entropy of its tokens in one layer halfway through the sampling run, in nats."""

    size: Size
    image: Image.Image
    values: np.ndarray


def example(run: Sweep, size: Size) -> Example:
    """Sample the prompt at one size; measure the last self-attention layer with the finest token grid."""
    pipe, step = run.pipeline, run.manifest.steps // 2
    grids = {layer.name: layer.training_tokens for layer in layers(pipe) if layer.grid is not None}
    layer = [name for name, tokens in grids.items() if tokens == max(grids.values())][-1]
    with ep.capture(pipe, layers=layer, keep=layer, keep_steps=[step]) as captured:
        settings = {"steps": run.manifest.steps, "guidance_scale": run.manifest.guidance_scale}
        (image,) = sample_images(pipe, [PROMPT], size, [run.grid.seeds[0]], **settings)
    return Example(size, image, captured.entropy_map(layer, step, branch="cond")[0].mean(0).numpy())


def plot_examples(part: SubFigure, examples: list[Example], trained: Size) -> None:
    """Show the image and the entropy map of every size."""
    part.suptitle("1  One model, sampled at three sizes", weight="bold", fontsize=11)
    grid = part.subplots(2, len(examples))
    low = min(one.values.min() for one in examples)
    high = max(one.values.max() for one in examples)
    for (above, below), one in zip(grid.T, examples, strict=True):
        above.imshow(one.image, interpolation="none")
        above.set_title(f"{one.size[0]} px{', as trained' if one.size == trained else ''}", fontsize=10)
        above.set_axis_off()
        drawn = draw_map(below, one.image, one.values, one.size, low, high)
        below.set_title(f"{one.values.mean():.1f} nats", fontsize=9)
    part.colorbar(drawn, ax=grid[1, :].tolist(), location="bottom", label="entropy of each token, nats", aspect=40)


def plot_fit(part: SubFigure, fit: Fit) -> None:
    """Plot the entropy of every layer against N, with its fitted line."""
    part.suptitle("2  Its attention entropy follows ln N", weight="bold", fontsize=11)
    axes = part.subplots()
    means = fit.points.groupby(["layer", "tokens"])["entropy"].mean()
    laws = fit.layers[:-1]
    for colour, law in zip(sns.color_palette("viridis", len(laws)), laws, strict=True):
        measured = means.loc[law.layer]
        tokens = measured.index.to_numpy(float)
        axes.plot(tokens, law.intercept + law.slope * np.log(tokens), color=colour, linewidth=1)
        axes.plot(tokens, measured, "o", color=colour, markersize=4)
    ends = np.array([fit.points["tokens"].min(), fit.points["tokens"].max()], float)
    axes.plot(ends, np.log(ends), ":", color="0.5")
    place = (8 * ends[0], np.log(8 * ends[0]))
    axes.annotate("maximum: ln N", place, (-8, 4), textcoords="offset points", ha="right", color="0.4", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%d"))
    axes.set_xlabel("N, tokens of the layer")
    axes.set_ylabel("mean entropy of a layer, nats")
    axes.set_title(f"H = a + b ln N, b = {fit.pooled.slope:.2f} ± {fit.pooled.slope_se:.2f}", fontsize=9)


def plot_scale_factor(part: SubFigure, law: ScalingLaw, finest: int) -> None:
    """Plot the scale factor of every layer against N/T."""
    part.suptitle("3  The scale factor that restores it", weight="bold", fontsize=11)
    axes = part.subplots()
    ratios = np.geomspace(0.25, 4, 41)
    lines = factors(law, ratios.tolist()).set_index("ratio").groupby("layer", sort=False)["scale_factor"]
    for colour, (_, line) in zip(sns.color_palette("viridis", len(lines)), lines, strict=True):
        axes.plot(line.index, line, color=colour, linewidth=1.2)
    paper = factors(Paper(), ratios.tolist(), training_tokens=finest)
    axes.plot(
        ratios, paper["scale_factor"], "--", color=sns.color_palette(PALETTE)[3], label=f"the paper's law, T = {finest}"
    )
    axes.plot([], [], color=sns.color_palette("viridis", 3)[1], label="measured law, by layer")
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("N/T, tokens relative to training")
    axes.set_ylabel("scale factor g of the logits")
    axes.set_title("g that restores the entropy of a layer", fontsize=9)
    axes.legend(fontsize=8, edgecolor="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a run of a bundled model, with its law")
    run = Sweep.open(parser.parse_args().run, ep.reference.load())
    trained = run.manifest.training_size
    sizes = [(trained[0] // 2, trained[1] // 2), trained, (2 * trained[0], 2 * trained[1])]
    with theme():
        figure = Figure(figsize=(13, 4.3), layout="constrained")
        left, middle, right = figure.subfigures(1, 3, width_ratios=[1.35, 1, 1], wspace=0.02)
        plot_examples(left, [example(run, size) for size in sizes], trained)
        plot_fit(middle, ep.fit(run))
        finest = max(layer.training_tokens for layer in layers(run.pipeline) if layer.grid is not None)
        plot_scale_factor(right, Derivation.from_json(run.run.read_text("law.json")).law, finest)
        figure.savefig(IMAGE, dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
