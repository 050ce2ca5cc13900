"""Train the autoencoder of the bundled models on scenes: `python -m recipes.autoencoder --work WORK`.

Four latent channels at a quarter of the height and width. The encoder is small because the denoisers encode fresh
scenes in every step. The denoisers never change the autoencoder.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderTiny
from torch import nn

from recipes.checkpoints import load_checkpoint, save_checkpoint
from recipes.loop import (
    AUTOENCODER_SEED,
    CHECKPOINT_SECONDS,
    LATENT_CHANNELS,
    Budget,
    Curve,
    build_tokenizer,
    encode,
    fresh_scenes,
    pixels_of,
    rate_schedule,
    to_unit,
)

BATCH = 8
RATE = 3e-3
LATENT_NOISE = 0.05
"""Noise added to the latents in training, relative to their standard deviation."""


def build() -> AutoencoderTiny:
    """Return an untrained autoencoder."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 1, 2),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=LATENT_CHANNELS,
        upsampling_scaling_factor=2,
    )


def train(work: Path, minutes: float) -> AutoencoderTiny:
    """Train within a budget of time, resuming from `work/autoencoder.pt`; the latents have unit variance."""
    torch.manual_seed(0)
    autoencoder = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=RATE, weight_decay=1e-4)
    budget = Budget(work, minutes, warmup=100, decay=0.7)
    checkpoint, parts = work / "autoencoder.pt", {"model": autoencoder, "optimizer": optimizer, "budget": budget}
    step = load_checkpoint(checkpoint, **parts)
    schedule = rate_schedule(optimizer, budget, RATE, step)
    curve, saved = Curve(work / "autoencoder.csv"), time.monotonic()
    while not budget.done:
        drawn = fresh_scenes(AUTOENCODER_SEED, step * BATCH, BATCH)
        image = to_unit(pixels_of(drawn)).to(memory_format=torch.channels_last)
        latents = autoencoder.encode(image).latents
        noise = LATENT_NOISE * torch.randn_like(latents) * latents.detach().std()
        error = autoencoder.decode(latents + noise).sample - image
        mse = error.square().mean()
        centre = latents.mean((0, 2, 3)).square().mean()
        loss = mse + 0.5 * error.abs().mean() + 1e-3 * latents.square().mean() + 1e-2 * centre
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        curve.add(step, budget.seconds, mse.item(), schedule.get_last_lr()[0])
        step += 1
        schedule.step()
        if time.monotonic() - saved > CHECKPOINT_SECONDS or budget.done:
            save_checkpoint(checkpoint, step, **parts)
            saved = time.monotonic()
    return autoencoder.eval()


def main(
    work: Annotated[Path, typer.Option(help="Folder for the checkpoint, the curve and the result.")],
    minutes: Annotated[float, typer.Option(help="Training time.")] = 12.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train the autoencoder and the tokenizer. Rerun the same command to resume."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    build_tokenizer(work / "tokenizer")
    if not (work / "vae").exists():
        autoencoder = train(work, minutes)
        with torch.no_grad():
            autoencoder.register_to_config(scaling_factor=1.0)
            pixels = pixels_of(fresh_scenes(AUTOENCODER_SEED, 500_000_000, 512))
            factor = 1 / encode(autoencoder, pixels).std().item()
        autoencoder.register_to_config(scaling_factor=factor)
        autoencoder.save_pretrained(work / "vae")


if __name__ == "__main__":
    typer.run(main)
