"""Test the defect scores on images with known defects: `python -m research.defect_curves`.

Vector drawings are rendered at every size and cropped, partly erased or tiled by a known amount. Writes docs/defects.md
and its figure.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
import typer
from matplotlib.figure import Figure
from rich.progress import track

from entropy_probe.estimation.intervals import t_quantile
from entropy_probe.evaluation import METRICS, WHITE, defects
from entropy_probe.models import format_size
from entropy_probe.reference import images as drawings_of_training
from entropy_probe.reference.drawings import Drawings
from recipes.emoji_download import UNSEEN, download, select_emoji

SIDE = 96
SIZES = [(24, 24), (32, 32), (48, 48), (64, 64), (96, 96), (128, 128), (192, 192), (128, 64), (64, 192)]
FRACTIONS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]

TEXT = """# The two defects as numbers

Written by `python -m research.defect_curves`; the formulas are in `entropy_probe/evaluation/defect_scores.py`.

- **Incompleteness** is {incompleteness}. `cut_off` is the fraction of an object's outline that is on the image border.
  `off_centre` is the distance of the centroid from the image centre; it is used only with a known background, where
  objects are expected to be complete and centred.
- **Repetition** is the {repetition}.

Both scores use the image alone. Below, {count} drawings of the training styles and {unseen} of a style that no bundled
model was trained on (Twemoji) are rendered at {side} pixels and damaged by a known amount. Bars are 95 % intervals of
the mean over the drawings.

![Scores against the amount of damage](defects.png)

{tables}

## Limitations

- Parts that are missing on opposite sides of the centre change neither the outline on the border nor the centroid.
- Without a known background, an object that covers more than half of the image border is taken for the background.
- An object that touches the border without being cut off has part of its outline there. Many drawings of Twemoji do.
  The smaller the image, the larger this part. The training styles have a margin and show no trend with size.
- Objects with repeated parts, such as grapes, have some repetition, which the rows of complete drawings show.
- Texture without a period, and disorder, are neither of the two defects.
"""


def erase(rendered: torch.Tensor, fraction: float) -> torch.Tensor:
    """Erase the upper `fraction` of the height of every object."""
    erased = rendered.clone()
    for image in erased:
        rows = (image < 255).any(0).any(-1).nonzero().flatten()
        first, last = int(rows[0]), int(rows[-1]) + 1
        image[:, first : first + round(fraction * (last - first))] = 255
    return erased


def crop(drawings: Drawings, fraction: float, corner: bool) -> torch.Tensor:
    """Return the centre or the lower left corner of larger drawings, without `fraction` of the height and width."""
    larger = drawings.at((round(SIDE / (1 - fraction)),) * 2)
    margin = larger.shape[-1] - SIDE
    top, left = (margin, 0) if corner else (margin // 2, margin // 2)
    return larger[..., top : top + SIDE, left : left + SIDE]


def tile(rendered: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return `rows` x `columns` smaller copies on a canvas of the same size."""
    size = SIDE // rows, SIDE // columns
    small = F.interpolate(rendered.float(), size, mode="bicubic", antialias=True).clamp(0, 255).round().byte()
    return small.repeat(1, 1, rows, columns)


def defective_images(drawings: Drawings) -> dict[tuple[str, str], torch.Tensor]:
    """Return images by kind and amount of damage."""
    complete = drawings.at((SIDE, SIDE))
    images: dict[tuple[str, str], torch.Tensor] = {("size", format_size(size)): drawings.at(size) for size in SIZES}
    for fraction in FRACTIONS:
        images["cropped on all sides", f"{fraction:.0%}"] = crop(drawings, fraction, corner=False)
        images["cropped to a corner", f"{fraction:.0%}"] = crop(drawings, fraction, corner=True)
        images["upper part erased", f"{fraction:.0%}"] = erase(complete, fraction)
    for rows, columns in [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3)]:
        images["tiled", f"{rows}x{columns}"] = tile(complete, rows, columns)
    return images


def measure(drawings: Drawings, style: str) -> pd.DataFrame:
    """Return the scores, one row per image."""
    parts = []
    for (kind, amount), images in track(defective_images(drawings).items(), style):
        known, unknown = defects(images, WHITE), defects(images)
        parts.append(
            pd.DataFrame(
                {
                    "incompleteness": known.incompleteness,
                    "cut off, unknown background": unknown.cut_off,
                    "repetition": known.repetition,
                }
            ).assign(kind=kind, amount=amount, style=style)
        )
    return pd.concat(parts, ignore_index=True)


def plot(frame: pd.DataFrame) -> Figure:
    """Plot every score (rows) against every kind of damage (columns)."""
    scores = ["incompleteness", "cut off, unknown background", "repetition"]
    kinds = list(dict.fromkeys(frame["kind"]))
    figure = Figure(figsize=(3.1 * len(kinds), 7.5), layout="constrained")
    panels = figure.subplots(len(scores), len(kinds), sharey="row")
    for row, score in enumerate(scores):
        for column, kind in enumerate(kinds):
            axes = panels[row, column]
            group = frame[frame["kind"] == kind]
            sns.pointplot(group, x="amount", y=score, hue="style", errorbar=("ci", 95), n_boot=500, ax=axes, seed=0)
            axes.set(xlabel=kind, ylabel=score if column == 0 else "", ylim=(-0.02, 1 if row < 2 else 0.75))
            axes.tick_params(axis="x", rotation=45)
            if row or column:
                axes.get_legend().remove()
    return figure


def table(frame: pd.DataFrame, kind: str) -> str:
    """Return mean and half the 95 % interval by amount and style, as Markdown."""
    rows = frame[frame["kind"] == kind]
    lines = [f"| {kind} | style | incompleteness | repetition |", "|---|---|---|---|"]
    for (amount, style), group in rows.groupby(["amount", "style"], sort=False):
        half = t_quantile(len(group) - 1) * group[["incompleteness", "repetition"]].sem()
        cells = (f"{group[name].mean():.3f} ± {half[name]:.3f}" for name in half.index)
        lines.append(f"| {amount} | {style} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    work: Annotated[Path, typer.Option(help="Folder for the download of the unseen style.")] = Path("critic-work"),
    out: Annotated[Path, typer.Option(help="Folder for defects.md and defects.png.")] = Path("docs"),
) -> None:
    """Score drawings with known defects and write the page."""
    download(work, UNSEEN)
    unseen = [e for e in select_emoji(work, UNSEEN) if e.category in ("Animals & Nature", "Food & Drink")]
    styles = {"training styles": drawings_of_training()[::2], "unseen style": Drawings(tuple(unseen))}
    frame = pd.concat([measure(drawings, style) for style, drawings in styles.items()], ignore_index=True)
    sns.set_theme(style="whitegrid")
    plot(frame).savefig(out / "defects.png", dpi=70)
    counts = {style: len(drawings.emoji) for style, drawings in styles.items()}
    tables = "\n\n".join(table(frame, kind) for kind in dict.fromkeys(frame["kind"]))
    text = TEXT.format(
        count=counts["training styles"],
        unseen=counts["unseen style"],
        side=SIDE,
        tables=tables,
        incompleteness=METRICS["incompleteness"].formula,
        repetition=METRICS["repetition"].formula,
    )
    (out / "defects.md").write_text(text)
    print(f"written to {out / 'defects.md'}; largest mean score of complete drawings: {_largest(frame)}")


def _largest(frame: pd.DataFrame) -> str:
    means = frame[frame["kind"] == "size"].groupby(["amount", "style"])[["incompleteness", "repetition"]].mean()
    return ", ".join(f"{name} {np.max(values):.3f}" for name, values in means.items())


if __name__ == "__main__":
    typer.run(main)
