"""Train the decoder of an autoencoder again: `python -m recipes.decoder --start FOLDER/vae --work WORK`.

The encoder is frozen, so the latents do not change and a denoiser trained on them needs no further training. Scenes of
several sizes are used, because small images need finer detail per latent than large ones.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderTiny
from torch import nn

from recipes.autoencoder import LATENT_NOISE
from recipes.checkpoints import load_checkpoint, save_checkpoint
from recipes.loop import (
    AUTOENCODER_SEED,
    CHECKPOINT_SECONDS,
    EVALUATION_SEED,
    Budget,
    Curve,
    fresh_scenes,
    pixels_of,
    rate_schedule,
    to_unit,
)

SIZES = (32, 32, 48, 64, 64, 96, 128)
"""Sizes in pixels, used in turn; 32 and 64 px twice as often."""

PIXELS = 8 * 64 * 64
"""Pixels in a batch: eight images of 64 x 64, or two of 128 x 128."""

RATE = 2e-3
FIRST_SCENE = 600_000_000
"""First scene in the autoencoder's block; the first training of the autoencoder used lower numbers."""


def train(work: Path, start: Path, minutes: float) -> AutoencoderTiny:
    """Train the decoder of the autoencoder in `start` within a budget of time, resuming from `work/decoder.pt`."""
    torch.manual_seed(1)
    autoencoder = AutoencoderTiny.from_pretrained(start, use_safetensors=True).float()
    autoencoder.to(memory_format=torch.channels_last).requires_grad_(False)
    decoder = autoencoder.decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE, weight_decay=1e-4)
    budget = Budget(work, minutes, warmup=50, decay=0.7)
    checkpoint, parts = work / "decoder.pt", {"model": decoder, "optimizer": optimizer, "budget": budget}
    step = load_checkpoint(checkpoint, **parts)
    schedule = rate_schedule(optimizer, budget, RATE, step)
    curve, saved = Curve(work / "decoder.csv", 7 * 7), time.monotonic()
    while not budget.done:
        size = SIZES[step % len(SIZES)]
        count = max(1, PIXELS // size**2)
        image = to_unit(pixels_of(fresh_scenes(AUTOENCODER_SEED, FIRST_SCENE + 40 * step, count, size=size)))
        image = image.to(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = autoencoder.encode(image).latents
        noise = LATENT_NOISE * torch.randn_like(latents) * latents.std()
        error = autoencoder.decode(latents + noise).sample - image
        mse = error.square().mean()
        optimizer.zero_grad(set_to_none=True)
        (mse + 0.5 * error.abs().mean()).backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        curve.add(step, budget.seconds, mse.item(), schedule.get_last_lr()[0])
        step += 1
        schedule.step()
        if time.monotonic() - saved > CHECKPOINT_SECONDS or budget.done:
            save_checkpoint(checkpoint, step, **parts)
            saved = time.monotonic()
    return autoencoder.eval()


@torch.no_grad()
def errors(autoencoder: AutoencoderTiny, count: int = 64) -> dict[int, float]:
    """Return the mean squared error of reconstructions on [-1, 1] per size, on scenes that no training uses."""
    found = {}
    for size in (32, 48, 64, 96, 128, 192):
        image = to_unit(pixels_of(fresh_scenes(EVALUATION_SEED, 0, count, size=size)))
        decoded = autoencoder.decode(autoencoder.encode(image).latents).sample
        found[size] = round((decoded - image).square().mean().item(), 5)
    return found


def main(
    work: Annotated[Path, typer.Option(help="Folder for the checkpoint, the curve and the result.")],
    start: Annotated[Path, typer.Option(help="Folder of the finished autoencoder.")],
    minutes: Annotated[float, typer.Option(help="Training time.")] = 15.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train the decoder and write the autoencoder to WORK/vae. Rerun the same command to resume."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    before = errors(AutoencoderTiny.from_pretrained(start, use_safetensors=True).float().eval())
    typer.echo(f"mean squared error before: {before}")
    autoencoder = train(work, start, minutes)
    after = errors(autoencoder)
    typer.echo(f"mean squared error after:  {after}")
    autoencoder.half().save_pretrained(work / "vae")
    (work / "decoder.json").write_text(json.dumps({"before": before, "after": after}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
