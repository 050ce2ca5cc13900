"""The facts of the reference's model card: `python -m entropy_probe.reference.card` writes them beside the weights.

A grid of samples with their captions, and how the denoising loss answers when the logits of all self-attention are
multiplied by g: attention matters if the loss is least at g = 1 and rises when g = 0 makes the attention uniform.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from entropy_probe.capture import attention_calls
from entropy_probe.pipelines import draw, load
from entropy_probe.reference import emoji as emoji_data
from entropy_probe.reference import prompts
from entropy_probe.reference.train import SIZE, encode, tokenize, velocity

MULTIPLIERS = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 2.0)
TIMESTEPS = (100, 300, 500, 700, 900)


@torch.no_grad()
def loss_response(
    pipeline: Any, latents: Float[Tensor, "count 4 h w"], captions: list[str]
) -> dict[float, tuple[float, float]]:
    """For every g: the v-prediction loss relative to g = 1, and the standard error of that ratio over the pictures.

    Pictures, noise and timesteps are the same for every g, so the comparison is paired.
    """
    context = pipeline.text_encoder(tokenize(pipeline.tokenizer, captions)).last_hidden_state
    alphas = pipeline.scheduler.alphas_cumprod

    def losses(g: float) -> Float[Tensor, " count"]:
        total = torch.zeros(len(latents))
        with attention_calls(pipeline.unet, lambda call: g if call.kind == "self" else None):
            for timestep in TIMESTEPS:
                noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(timestep))
                noisy, target = velocity(latents, noise, alphas[timestep].view(1, 1, 1, 1))
                predicted = pipeline.unet(noisy, timestep, context).sample
                total += F.mse_loss(predicted, target, reduction="none").mean((1, 2, 3)) / len(TIMESTEPS)
        return total

    base = losses(1.0)
    response = {}
    for g in MULTIPLIERS:
        change = losses(g)
        ratio = change.mean() / base.mean()
        spread = (change - ratio * base).std() / base.mean() / len(base) ** 0.5
        response[g] = (float(ratio), float(spread))
    return response


def sample_grid(pipeline: Any, captions: list[str], path: Path, steps: int = 20) -> None:
    """Draw 64 captions at the training size as an 8 x 8 grid."""
    images = draw(pipeline, captions, (SIZE, SIZE), [0] * len(captions), steps=steps, guidance_scale=4.0)
    figure = Figure(figsize=(10, 11), layout="constrained")
    for axes, image, caption in zip(figure.subplots(8, 8).flat, images, captions, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(caption, fontsize=6)
        axes.axis("off")
    figure.savefig(path, dpi=130)


def main(
    work: Annotated[Path, typer.Option(help="Folder with the downloads of the recipe.")] = Path("reference-work"),
    model: Annotated[str, typer.Option(help="The trained pipeline.")] = "reference",
    out: Annotated[Path, typer.Option(help="Where samples.png and response.json are written.")] = Path(
        "data/reference"
    ),
) -> None:
    """Write samples.png and response.json."""
    pipeline = load(model, device="cpu")
    sample_grid(pipeline, prompts()[:64], out / "samples.png")
    emoji_data.fetch(work)
    known = json.loads((out / "training.json").read_text())["recipe"]["focus"]
    emoji = [e for e in emoji_data.load(work) if e.category in known][::6]
    pixels = torch.from_numpy(emoji_data.pictures(emoji, SIZE))
    response = loss_response(pipeline, encode(pipeline.vae, pixels), [e.caption for e in emoji])
    rows = [{"g": g, "loss": ratio, "loss_se": error} for g, (ratio, error) in response.items()]
    (out / "response.json").write_text(json.dumps({"pictures": len(emoji), "response": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
