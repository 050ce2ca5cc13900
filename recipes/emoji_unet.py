"""Train the bundled UNet pipeline: `python -m recipes.emoji_unet`.

Three stages: an autoencoder, then a text encoder and a denoiser together, then the export of a
`StableDiffusionPipeline` in half precision. Everything is trained at `SIZE` pixels only. Rerun the command to resume:
the denoiser resumes from its last checkpoint in the work folder, and a finished autoencoder is loaded from there.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from recipes import emoji_download, emoji_rescaling
from recipes.checkpoints import load_checkpoint, save_checkpoint
from recipes.emoji_loop import (
    Curve,
    FloatAttention,
    batch_indices,
    cyclic_schedule,
    weight_average,
)
from recipes.emoji_networks import (
    SIZE,
    Recipe,
    build_autoencoder,
    build_denoiser,
    encode,
    to_unit,
    train_tokenizer,
)
from recipes.loop import (
    CHECKPOINT_SECONDS,
    add_noise,
    build_scheduler,
    build_text_encoder,
    tidy_autoencoder,
    tokenize,
)
from recipes.portable import make_portable


def train_autoencoder(work: Path, pixels: UInt8[Tensor, "count h w 3"], recipe: Recipe) -> AutoencoderTiny:
    """Train the autoencoder, or load the finished one.

    Its `scaling_factor` gives the latents unit variance.
    """
    finished = work / "vae"
    if finished.exists():
        return AutoencoderTiny.from_pretrained(finished, use_safetensors=True).eval()
    torch.manual_seed(recipe.seed)
    autoencoder = build_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=recipe.autoencoder_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.autoencoder_rate, total_steps=recipe.autoencoder_steps, pct_start=0.05
    )
    every_image = torch.arange(len(pixels))
    with Curve(work / "autoencoder.csv", "autoencoder", recipe.autoencoder_steps) as curve:
        for step in range(recipe.autoencoder_steps):
            index = batch_indices(every_image, recipe.autoencoder_batch, step, recipe.seed)
            image = to_unit(pixels[index]).to(memory_format=torch.channels_last)
            shift = torch.randint(-4, 5, (2,)).tolist()
            image = image.roll(shift, dims=(2, 3))
            with torch.autocast("cpu", torch.bfloat16):
                latents = autoencoder.encode(image).latents
                latents = latents + recipe.latent_noise * torch.randn_like(latents) * latents.detach().std()
                decoded = autoencoder.decode(latents).sample
            error = decoded.float() - image
            mse = error.square().mean()
            loss = mse + 0.5 * error.abs().mean() + 1e-3 * latents.float().square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            curve.add(step, mse.item())
    autoencoder.eval()
    autoencoder.register_to_config(scaling_factor=1 / encode(autoencoder, pixels).std().item())
    autoencoder.save_pretrained(finished)
    return autoencoder


def train_denoiser(
    work: Path,
    latents: Float[Tensor, "count 4 h w"],
    captions: list[str],
    focus: Tensor,
    tokenizer: CLIPTokenizer,
    recipe: Recipe,
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Train text encoder and denoiser jointly; resume from `work/denoiser.pt`.

    The first `broad_steps` use all images, later steps the images with an index in `focus`.

    Returns:
        Text encoder and denoiser with averaged weights.
    """
    torch.manual_seed(recipe.seed)
    model = nn.ModuleDict({"text": build_text_encoder(recipe, tokenizer), "unet": build_denoiser(recipe)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=1e-2, betas=(0.9, 0.98))
    parts = {
        "model": model,
        "average": weight_average(model, recipe.ema),
        "optimizer": optimizer,
        "schedule": cyclic_schedule(optimizer, recipe.cycles, recipe.warmup, recipe.decay),
    }
    checkpoint = work / "denoiser.pt"
    start, steps = load_checkpoint(checkpoint, **parts), sum(recipe.cycles)
    denoise, scheduler = torch.compile(model["unet"]), build_scheduler()
    tokens, empty = tokenize(tokenizer, captions), tokenize(tokenizer, [""])
    every_image = torch.arange(len(latents))
    saved = time.monotonic()
    with Curve(work / "denoiser.csv", "denoiser", steps, start) as curve:
        for step in range(start, steps):
            index = batch_indices(every_image if step < recipe.broad_steps else focus, recipe.batch, step, recipe.seed)
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            noisy, target, timesteps = add_noise(latents[index], scheduler, generator)
            dropped = torch.rand(len(index), 1, generator=generator) < recipe.caption_dropout
            prompt = torch.where(dropped, empty, tokens[index])
            if step in (recipe.wake_at, recipe.sharpen_at):
                _rescale_attention(step, model, parts["average"].module, (noisy, timesteps, prompt), recipe)
            with torch.autocast("cpu", torch.bfloat16), FloatAttention():
                context = model["text"](prompt).last_hidden_state
                predicted = denoise(noisy, timesteps, context).sample
            loss = F.mse_loss(predicted.float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            parts["schedule"].step()
            parts["average"].update_parameters(model)
            curve.add(step, loss.item())
            if time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == steps:
                save_checkpoint(checkpoint, step + 1, **parts)
                saved = time.monotonic()
    average = parts["average"].module
    return average["text"].eval(), average["unet"].eval()


def _rescale_attention(
    step: int, model: nn.ModuleDict, average: nn.ModuleDict, inputs: tuple[Tensor, Tensor, Tensor], recipe: Recipe
) -> None:
    means = emoji_rescaling.measure_layers(model, *inputs)
    if step == recipe.wake_at:
        gains = emoji_rescaling.minimum_variance_gains(means, recipe)
    else:
        gains = emoji_rescaling.maximum_entropy_gains(means, recipe)
    for network in (model, average):
        emoji_rescaling.multiply_logits(network["unet"], gains)


def export(
    folder: Path,
    autoencoder: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    denoiser: UNet2DConditionModel,
) -> None:
    """Save the `StableDiffusionPipeline` in half precision, as safetensors only."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    tidy_autoencoder(folder)
    make_portable(folder)


def main(
    work: Annotated[Path, typer.Option(help="Folder for downloads, checkpoints and curves.")] = Path("reference-work"),
    out: Annotated[Path, typer.Option(help="Folder for the trained pipeline.")] = Path("data/reference"),
) -> None:
    """Train the UNet pipeline from scratch. Rerun the same command to resume from the last checkpoint."""
    recipe = Recipe()
    emoji_download.download(work)
    emoji = emoji_download.select_emoji(work)
    captions = [e.caption for e in emoji]
    pixels = torch.from_numpy(emoji_download.render(emoji, SIZE, cache=work))
    tokenizer = train_tokenizer(work, captions, recipe)
    autoencoder = train_autoencoder(work, pixels, recipe)
    focus = torch.tensor([i for i, e in enumerate(emoji) if e.category in recipe.focus])
    latents = encode(autoencoder, pixels)
    text_encoder, denoiser = train_denoiser(work, latents, captions, focus, tokenizer, recipe)
    export(out, autoencoder, text_encoder, tokenizer, denoiser)
    facts = {
        "recipe": asdict(recipe),
        "images": len(emoji),
        "machine": platform.processor(),
        "torch": torch.__version__,
    }
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
