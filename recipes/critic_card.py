"""Measure the caption retrieval of the critic's model card: `python -m recipes.critic_card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

from entropy_probe.evaluation.critic import Critic, load_critic
from entropy_probe.evaluation.image_metrics import features, rank_of_caption
from entropy_probe.models import Size, format_size
from entropy_probe.reference.drawings import Drawings
from recipes.emoji_download import PACKAGES, UNSEEN, download, select_emoji

CANDIDATES = 500
SIZES: tuple[Size, ...] = ((24, 24), (32, 32), (64, 64), (96, 96), (128, 128), (192, 192), (256, 256), (64, 192))


@torch.no_grad()
def retrieval(critic: Critic, drawings: Drawings, size: Size) -> tuple[float, float]:
    """Return the top-1 and top-5 accuracy of caption retrieval; captions do not name the style."""
    captions = critic.embed_captions([e.name.replace("-", " ") for e in drawings.emoji])
    rank = rank_of_caption(features(critic, drawings.at(size)), captions, torch.arange(len(captions)))
    return float((rank < 1).float().mean()), float((rank < 5).float().mean())


def main(
    work: Annotated[Path, typer.Option(help="Folder for downloads.")] = Path("critic-work"),
    out: Annotated[Path, typer.Option(help="Folder of the critic; retrieval.csv is written there.")] = Path(
        "data/critic"
    ),
) -> None:
    """Print and save the accuracy of caption retrieval among 500 drawings, by style and size."""
    critic = load_critic(out)
    packages = PACKAGES | UNSEEN
    download(work, packages)
    rows = []
    for style, package in packages.items():
        emoji = select_emoji(work, {style: package})
        order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(0))[:CANDIDATES]
        drawings = Drawings(tuple(emoji[i] for i in order.tolist()))
        for size in SIZES:
            first, five = retrieval(critic, drawings, size)
            rows.append({"style": style, "size": format_size(size), "top_1": first, "top_5": five})
    pd.DataFrame(rows).to_csv(out / "retrieval.csv", index=False, float_format="%.3f")
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
