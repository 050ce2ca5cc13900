"""The two defects on ground truth: `python benchmarks/defect_curves.py` writes docs/defects.md and its figure.

Drawings from vectors at every size, cropped, partly erased, and tiled: what the scores must see is known there.
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

from entropy_probe.evaluation import WHITE, defects
from entropy_probe.models import format_size
from entropy_probe.reference import images
from entropy_probe.reference.drawings import Drawings
from recipes.emoji_download import UNSEEN, download, select_emoji

SIDE = 96
SIZES = [(24, 24), (32, 32), (48, 48), (64, 64), (96, 96), (128, 128), (192, 192), (128, 64), (64, 192)]
SHARES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]

TEXT = """# The two defects as numbers

`python -m research.defect_curves` generates this page. The formulas are in
`entropy_probe/evaluation/defect_scores.py`.

- **Incompleteness** combines two numbers: 1 − (1 − cut_off)(1 − lopsided). `cut_off` is the fraction of an object's
  outline that lies on the frame. `lopsided` is the distance between the centroid and the centre. It is only used if
  complete objects are known to be centred on a plain background.
- **Repetition** is the highest peak of the image's autocorrelation away from the origin, measured from the valley
  between the two.

Both need only the image. They were tested on {count} drawings of the training styles and {unseen} drawings of a style
that was not used to develop them (Twemoji). The drawings were rendered at {side} pixels and damaged by a known
amount. Error bars are 95 % intervals of the mean over the drawings.

![Scores against the amount of damage](defects.png)

{tables}

## What the scores do not detect

- A part that is missing symmetrically on both sides changes neither the outline at the frame nor the centroid.
- If the background is unknown, an object that covers more than half of the frame's border is taken for the
  background.
- An object can touch the frame without being cut, as many Twemoji drawings do. Part of its outline then counts as cut
  off, more so in smaller images. The training styles keep a margin, and their scores do not depend on the size.
- Objects with repeated parts (grapes, a string of pearls) have some repetition even when they are correct. The rows
  for undamaged drawings show how much.
- Texture without a period, and disorder, do not raise either score.
"""


def erased(drawn: torch.Tensor, share: float) -> torch.Tensor:
    """Paint the upper part of every object's height white."""
    spoilt = drawn.clone()
    for image in spoilt:
        rows = (image < 255).any(0).any(-1).nonzero().flatten()
        first, last = int(rows[0]), int(rows[-1]) + 1
        image[:, first : first + round(share * (last - first))] = 255
    return spoilt


def cropped(drawings: Drawings, share: float, corner: bool) -> torch.Tensor:
    """Keep the middle, or a lower left corner, of larger drawings; `share` of the height and of the width is lost."""
    whole = drawings.at((round(SIDE / (1 - share)),) * 2)
    rest = whole.shape[-1] - SIDE
    top, left = (rest, 0) if corner else (rest // 2, rest // 2)
    return whole[..., top : top + SIDE, left : left + SIDE]


def tiled(drawn: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Copies side by side on the same canvas."""
    size = SIDE // rows, SIDE // columns
    small = F.interpolate(drawn.float(), size, mode="bicubic", antialias=True).clamp(0, 255).round().byte()
    return small.repeat(1, 1, rows, columns)


def spoilt(drawings: Drawings) -> dict[tuple[str, str], torch.Tensor]:
    """(kind, amount) -> images."""
    whole = drawings.at((SIDE, SIDE))
    made: dict[tuple[str, str], torch.Tensor] = {("size", format_size(size)): drawings.at(size) for size in SIZES}
    for share in SHARES:
        made["cropped around", f"{share:.0%}"] = cropped(drawings, share, corner=False)
        made["cropped to a corner", f"{share:.0%}"] = cropped(drawings, share, corner=True)
        made["upper part erased", f"{share:.0%}"] = erased(whole, share)
    for rows, columns in [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3)]:
        made["tiled", f"{rows}x{columns}"] = tiled(whole, rows, columns)
    return made


def measure(drawings: Drawings, style: str) -> pd.DataFrame:
    """A row per image."""
    parts = []
    for (kind, amount), made in track(spoilt(drawings).items(), style):
        known, unknown = defects(made, WHITE), defects(made)
        parts.append(
            pd.DataFrame(
                {
                    "incompleteness": known.incompleteness,
                    "cut off, ground not given": unknown.cut_off,
                    "repetition": known.repetition,
                }
            ).assign(kind=kind, amount=amount, style=style)
        )
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """A column per kind of damage, a row per score."""
    scores = ["incompleteness", "cut off, ground not given", "repetition"]
    kinds = list(dict.fromkeys(frame["kind"]))
    figure = Figure(figsize=(3.1 * len(kinds), 7.5), layout="constrained")
    panels = figure.subplots(len(scores), len(kinds), sharey="row")
    for row, score in enumerate(scores):
        for column, kind in enumerate(kinds):
            axes = panels[row, column]
            own = frame[frame["kind"] == kind]
            sns.pointplot(own, x="amount", y=score, hue="style", errorbar=("ci", 95), n_boot=500, ax=axes, seed=0)
            axes.set(xlabel=kind, ylabel=score if column == 0 else "", ylim=(-0.02, 1 if row < 2 else 0.75))
            axes.tick_params(axis="x", rotation=45)
            if row or column:
                axes.get_legend().remove()
    return figure


def table(frame: pd.DataFrame, kind: str) -> str:
    """Mean and half the 95 % interval, as Markdown."""
    own = frame[frame["kind"] == kind]
    lines = [f"| {kind} | style | incompleteness | repetition |", "|---|---|---|---|"]
    for (amount, style), group in own.groupby(["amount", "style"], sort=False):
        half = 1.96 * group[["incompleteness", "repetition"]].sem()
        cells = (f"{group[name].mean():.3f} ± {half[name]:.3f}" for name in half.index)
        lines.append(f"| {amount} | {style} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    work: Annotated[Path, typer.Option(help="Folder for the unseen style's download.")] = Path("critic-work"),
    out: Annotated[Path, typer.Option(help="Where defects.md and defects.png are written.")] = Path("docs"),
) -> None:
    """Measure, draw and write."""
    download(work, UNSEEN)
    unseen = [e for e in select_emoji(work, UNSEEN) if e.category in ("Animals & Nature", "Food & Drink")]
    styles = {"training styles": images()[::2], "unseen style": Drawings(tuple(unseen))}
    frame = pd.concat([measure(drawings, style) for style, drawings in styles.items()], ignore_index=True)
    sns.set_theme(style="whitegrid")
    draw(frame).savefig(out / "defects.png", dpi=70)
    counts = {style: len(drawings.emoji) for style, drawings in styles.items()}
    tables = "\n\n".join(table(frame, kind) for kind in dict.fromkeys(frame["kind"]))
    text = TEXT.format(count=counts["training styles"], unseen=counts["unseen style"], side=SIDE, tables=tables)
    (out / "defects.md").write_text(text)
    print(f"written to {out / 'defects.md'}; largest score of a whole drawing: {_largest(frame)}")


def _largest(frame: pd.DataFrame) -> str:
    means = frame[frame["kind"] == "size"].groupby(["amount", "style"])[["incompleteness", "repetition"]].mean()
    return ", ".join(f"{name} {np.max(values):.3f}" for name, values in means.items())


if __name__ == "__main__":
    typer.run(main)
