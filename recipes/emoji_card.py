"""Measure the figures of a bundled pipeline's model card: `python -m recipes.emoji_card`.

It samples a grid of captions, and measures the denoising loss with the logits of all self-attention multiplied by g.
The attention matters if the loss is lowest at g = 1 and rises at g = 0, where the attention is uniform.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from entropy_probe.evaluation.loss_curves import loss
from entropy_probe.models import load, sample_images
from entropy_probe.reference import images, prompts
from recipes.emoji_networks import SIZE

SCALE_FACTORS = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 2.0)


def sample_grid(pipeline: Any, captions: list[str], path: Path, steps: int = 20) -> None:
    """Sample 64 captions at the training size and save them as an 8 x 8 grid."""
    samples = sample_images(pipeline, captions, (SIZE, SIZE), [0] * len(captions), steps=steps, guidance_scale=4.0)
    figure = Figure(figsize=(10, 11), layout="constrained")
    for axes, image, caption in zip(figure.subplots(8, 8).flat, samples, captions, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(caption, fontsize=6)
        axes.axis("off")
    figure.savefig(path, dpi=130)


def main(
    model: Annotated[str, typer.Option(help="Name or folder of the trained pipeline.")] = "reference",
    out: Annotated[Path, typer.Option(help="Folder for samples.png and response.json.")] = Path("data/reference"),
) -> None:
    """Write samples.png and response.json (loss against g) of a model card."""
    pipeline = load(model, device="cpu")
    sample_grid(pipeline, prompts()[:64], out / "samples.png")
    real_images = images()[::6]
    curve = loss(pipeline, real_images, [(SIZE, SIZE)], SCALE_FACTORS)
    rows = curve.table().drop(columns="size").to_dict("records")
    (out / "response.json").write_text(
        json.dumps({"images": len(real_images.captions), "response": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
