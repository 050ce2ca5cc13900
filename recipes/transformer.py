"""Train the bundled transformer on scenes at 64 px: `python -m recipes.transformer --work WORK --base BASE`.

The denoiser is an ordinary `PixArtTransformer2DModel` with default initialisation. Nothing rescales its attention
during or after training. The text encoder is trained together with it.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderTiny, PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel

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
    token_mask,
    train,
)
from recipes.portable import make_portable

WIDTH = 192
LAYERS = 6
PATCH = 2
RATE = 1e-3
PROMPT_LENGTH = 120
"""Tokens to which PixArt's pipeline pads a prompt. The padding is masked."""


def build(settings: Settings) -> PixArtTransformer2DModel:
    """Return an untrained transformer; diffusers interpolates its position embeddings to other sizes."""
    return PixArtTransformer2DModel(
        num_attention_heads=WIDTH // settings.head_width,
        attention_head_dim=settings.head_width,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        cross_attention_dim=WIDTH,
        sample_size=scenes.SIZE // LATENT_FACTOR,
        patch_size=PATCH,
        caption_channels=settings.text_width,
    )


def denoise(model: nn.ModuleDict, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
    """Predict the velocity of noisy latents. The padding of the captions is masked, as in the pipeline."""
    text = model["text"]
    predicted: Tensor = model["denoiser"](
        noisy,
        encoder_hidden_states=text(tokens).last_hidden_state,
        encoder_attention_mask=token_mask(tokens, text.config.eos_token_id),
        timestep=timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return predicted


def lengthen(text_encoder: CLIPTextModel, length: int) -> CLIPTextModel:
    """Return the text encoder with more positions. Its attention is causal: earlier tokens do not change."""
    config = copy.deepcopy(text_encoder.config)
    config.max_position_embeddings = length
    longer = CLIPTextModel(config)
    weights = text_encoder.state_dict()
    (name,) = (n for n in weights if n.endswith("position_embedding.weight"))
    weights[name] = F.pad(weights[name], (0, 0, 0, length - len(weights[name])))
    longer.load_state_dict(weights)
    return longer.eval()


def export(out: Path, base: Path, model: nn.ModuleDict, facts: dict[str, Any]) -> None:
    """Save a `PixArtAlphaPipeline` in float16, as safetensors only."""
    pipeline = PixArtAlphaPipeline(
        vae=AutoencoderTiny.from_pretrained(base / "vae", use_safetensors=True),
        text_encoder=lengthen(model["text"], PROMPT_LENGTH),
        tokenizer=build_tokenizer(base / "tokenizer"),
        transformer=model["denoiser"],
        scheduler=build_scheduler(),
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
    batch: Annotated[int, typer.Option(help="Scenes per step.")] = 24,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    rate: Annotated[float, typer.Option(help="Largest learning rate.")] = RATE,
    start: Annotated[Path | None, typer.Option(help="Exported pipeline from which to continue.")] = None,
    compiled: Annotated[bool, typer.Option(help="Use torch.compile.")] = False,
) -> None:
    """Train the transformer and export the pipeline to WORK/pipeline. Rerun the same command to resume."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    settings = Settings(seed=seed, batch=batch, rate=rate)
    text = build_text_encoder(settings, build_tokenizer(base / "tokenizer"))
    model = nn.ModuleDict({"text": text, "denoiser": build(settings)})
    before = load_start(model, start, "transformer", settings) if start else 0
    step = torch.compile(denoise) if compiled else denoise
    finished, steps = train(work, base, model, step, settings, minutes, before)
    facts = {"settings": asdict(settings), "width": WIDTH, "layers": LAYERS, "patch": PATCH}
    facts |= {"steps": steps, "steps_before": before, "minutes": minutes, "torch": torch.__version__}
    export(work / "pipeline", base, finished, facts)


if __name__ == "__main__":
    typer.run(main)
