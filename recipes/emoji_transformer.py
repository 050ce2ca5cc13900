"""The recipe of the second reference, a transformer denoiser: `python -m recipes.emoji_transformer`.

It stands beside the UNet because how much a scaling factor can do depends on how much of the layout the attention
decides. Autoencoder, text encoder, data and size are those of the first reference; only the denoiser is trained.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from entropy_probe.models import load
from recipes import emoji_download as emoji_data
from recipes.emoji_loop import (
    CHECKPOINT_SECONDS,
    Curve,
    FloatAttention,
    average_into,
    batch,
    rate_at,
    save_checkpoint,
)
from recipes.emoji_unet import (
    LATENT_CHANNELS,
    SIZE,
    build_scheduler,
    encode,
    noised,
    tidy_autoencoder,
    tokenize,
)

PROMPT_LENGTH = 120
"""Tokens to which PixArt's pipeline pads a prompt; those beyond the caption are masked."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters."""

    seed: int = 0
    cycles: tuple[int, ...] = (6_500,)
    batch: int = 48
    rate: float = 1e-3
    warmup: int = 300
    decay: float = 0.4
    weight_decay: float = 1e-2
    caption_dropout: float = 0.1
    ema: float = 0.999
    focus: tuple[str, ...] = ("Animals & Nature", "Food & Drink")
    width: int = 192
    head_width: int = 32
    layers: int = 8
    patch: int = 2


def build_denoiser(recipe: Recipe, text_width: int) -> PixArtTransformer2DModel:
    """A diffusion transformer with cross-attention to the text; position embeddings are interpolated with the size."""
    return PixArtTransformer2DModel(
        num_attention_heads=recipe.width // recipe.head_width,
        attention_head_dim=recipe.head_width,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=recipe.layers,
        cross_attention_dim=recipe.width,
        sample_size=SIZE // 4,
        patch_size=recipe.patch,
        caption_channels=text_width,
    )


def denoise(
    denoiser: Callable[..., Any],
    noisy: Float[Tensor, "batch 4 h w"],
    timesteps: Tensor,
    context: Float[Tensor, "batch length width"],
    mask: Tensor,
) -> Float[Tensor, "batch 4 h w"]:
    """The prediction of the transformer; padding of the captions is masked, as the pipeline does it."""
    predicted: Tensor = denoiser(
        noisy,
        encoder_hidden_states=context,
        encoder_attention_mask=mask,
        timestep=timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return predicted


def train(
    work: Path,
    latents: Float[Tensor, "count 4 h w"],
    context: Float[Tensor, "count length width"],
    mask: Tensor,
    recipe: Recipe,
    milestones: Collection[int] = (),
) -> PixArtTransformer2DModel:
    """Train the denoiser, resuming from `work/dit.pt`; the last context is that of the empty caption.

    After the steps in `milestones` the averaged weights are kept as `milestone(work, step)`.
    """
    torch.manual_seed(recipe.seed)
    model = build_denoiser(recipe, context.shape[-1])
    average = copy.deepcopy(model).requires_grad_(False)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    checkpoint, start = work / "dit.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    alphas = build_scheduler().alphas_cumprod
    everything, empty = torch.arange(len(latents)), len(latents)
    steps, saved = sum(recipe.cycles), time.monotonic()
    with Curve(work / "dit.csv", "transformer", steps, start) as curve:
        for step in range(start, steps):
            index = batch(everything, recipe.batch, step, recipe.seed)
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            noisy, target, timesteps = noised(latents[index], alphas, generator)
            dropped = torch.rand(len(index), generator=generator) < recipe.caption_dropout
            caption = torch.where(dropped, empty, index)
            with torch.autocast("cpu", torch.bfloat16), FloatAttention():
                predicted = denoise(compiled, noisy, timesteps, context[caption], mask[caption])
            loss = F.mse_loss(predicted.float(), target)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * rate_at(step, recipe.cycles, recipe.warmup, recipe.decay)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average_into(average, model, min(recipe.ema, (1 + step) / (10 + step)))
            curve.add(step, loss.item())
            if step + 1 in milestones:
                kept = milestone(work, step + 1)
                save_file(average.state_dict(), kept.with_suffix(".part"))
                os.replace(kept.with_suffix(".part"), kept)
            if time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == steps:
                save_checkpoint(checkpoint, step + 1, model=model, average=average, optimizer=optimizer)
                saved = time.monotonic()
    return average.eval()


def milestone(work: Path, step: int) -> Path:
    """Where `train` keeps the weights after a step."""
    return work / f"dit-{step}.safetensors"


@torch.no_grad()
def examples(
    base: Any, pixels: UInt8[Tensor, "count h w 3"], captions: list[str]
) -> tuple[
    Float[Tensor, "count 4 h_latent w_latent"], Float[Tensor, "count+1 length width"], Float[Tensor, "count+1 length"]
]:
    """Latents, the text of the captions and then of the empty one, and which tokens of it count."""
    tokens = tokenize(base.tokenizer, [*captions, ""])
    lengths = (tokens == base.tokenizer.eos_token_id).int().argmax(-1) + 1
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).float()
    return encode(base.vae, pixels), base.text_encoder(tokens).last_hidden_state, mask


def longer(text_encoder: CLIPTextModel, length: int) -> CLIPTextModel:
    """The same text encoder for longer prompts. It looks back only, so what is added changes no earlier token."""
    config = copy.deepcopy(text_encoder.config)
    config.max_position_embeddings = length
    made = CLIPTextModel(config)
    weights = text_encoder.state_dict()
    (name,) = (n for n in weights if n.endswith("position_embedding.weight"))
    weights[name] = F.pad(weights[name], (0, 0, 0, length - len(weights[name])))
    made.load_state_dict(weights)
    return made.eval()


def export(folder: Path, base: Any, denoiser: PixArtTransformer2DModel) -> None:
    """Save the `PixArtAlphaPipeline` in half precision, safetensors only."""
    pipeline = PixArtAlphaPipeline(
        vae=base.vae,
        text_encoder=longer(base.text_encoder, PROMPT_LENGTH),
        tokenizer=base.tokenizer,
        transformer=denoiser,
        scheduler=build_scheduler(),
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    tidy_autoencoder(folder)


def main(
    work: Annotated[Path, typer.Option(help="Folder for downloads, checkpoints and curves.")] = Path("reference-work"),
    out: Annotated[Path, typer.Option(help="Where the finished pipeline is saved.")] = Path("data/reference-dit"),
) -> None:
    """Train the transformer reference; restarted, it goes on from the last checkpoint."""
    recipe = Recipe()
    base = load("reference", device="cpu", dtype="float32")
    emoji_data.fetch(work)
    emoji = [e for e in emoji_data.load(work) if e.category in recipe.focus]
    pixels = torch.from_numpy(emoji_data.images(emoji, SIZE, cache=work))
    latents, context, mask = examples(base, pixels, [e.caption for e in emoji])
    denoiser = train(work, latents, context, mask, recipe)
    export(out, base, denoiser)
    facts = {"recipe": asdict(recipe), "images": len(emoji), "machine": platform.processor()}
    shutil.copy(work / "dit.csv", out / "curve.csv")
    (out / "training.json").write_text(json.dumps({**facts, "torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
