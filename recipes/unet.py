"""Train the bundled UNet on scenes at 64 px: `python -m recipes.unet --work WORK --base BASE`.

The denoiser is an ordinary `UNet2DConditionModel` with default initialisation. Nothing rescales its attention during or
after training. The text encoder is trained together with it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from entropy_probe.reference import scenes
from recipes.loop import (
    LATENT_CHANNELS,
    LATENT_FACTOR,
    Settings,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    load_start,
    tidy_autoencoder,
    train,
)
from recipes.portable import make_portable

CHANNELS = (48, 96)
HEAD_WIDTH = 24
RATE = 8e-4


def build(settings: Settings) -> UNet2DConditionModel:
    """Return an untrained UNet with self- and cross-attention at both levels."""
    return UNet2DConditionModel(
        sample_size=scenes.SIZE // LATENT_FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * len(CHANNELS),
        up_block_types=("CrossAttnUpBlock2D",) * len(CHANNELS),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=tuple(c // HEAD_WIDTH for c in CHANNELS),
        cross_attention_dim=settings.text_width,
        norm_num_groups=16,
    )


def denoise(model: nn.ModuleDict, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
    """Predict the velocity of noisy latents."""
    context = model["text"](tokens).last_hidden_state
    predicted: Tensor = model["denoiser"](noisy, timesteps, context).sample
    return predicted


def export(out: Path, base: Path, model: nn.ModuleDict, facts: dict[str, Any]) -> None:
    """Save a `StableDiffusionPipeline` in float16, as safetensors only."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(base / "vae", use_safetensors=True),
        text_encoder=model["text"],
        tokenizer=build_tokenizer(base / "tokenizer"),
        unet=model["denoiser"],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(out, safe_serialization=True)
    tidy_autoencoder(out)
    make_portable(out)
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main(
    work: Annotated[Path, typer.Option(help="Folder for the checkpoint and the curve.")],
    base: Annotated[Path, typer.Option(help="Folder of the finished autoencoder.")],
    minutes: Annotated[float, typer.Option(help="Training time.")] = 240.0,
    seed: Annotated[int, typer.Option(help="Seed of the initialisation, the scenes and the noise.")] = 0,
    batch: Annotated[int, typer.Option(help="Scenes per step.")] = 16,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    rate: Annotated[float, typer.Option(help="Largest learning rate.")] = RATE,
    start: Annotated[Path | None, typer.Option(help="Exported pipeline from which to continue.")] = None,
    compiled: Annotated[bool, typer.Option(help="Use torch.compile.")] = False,
) -> None:
    """Train the UNet and export the pipeline to WORK/pipeline. Rerun the same command to resume."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    settings = Settings(seed=seed, batch=batch, rate=rate)
    text = build_text_encoder(settings, build_tokenizer(base / "tokenizer"))
    model = nn.ModuleDict({"text": text, "denoiser": build(settings)})
    before = load_start(model, start, "unet", settings) if start else 0
    step = torch.compile(denoise) if compiled else denoise
    finished, steps = train(work, base, model, step, settings, minutes, before)
    facts = {
        "settings": asdict(settings),
        "channels": CHANNELS,
        "head_width": HEAD_WIDTH,
        "steps": steps,
        "steps_before": before,
        "minutes": minutes,
    }
    export(work / "pipeline", base, finished, {**facts, "torch": torch.__version__})


if __name__ == "__main__":
    typer.run(main)
