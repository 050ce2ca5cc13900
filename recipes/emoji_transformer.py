"""Train the bundled transformer pipeline: `python -m recipes.emoji_transformer`.

It complements the UNet: the effect of a scale factor depends on how much of the layout the attention decides. The
autoencoder, text encoder, data and size are the same as for the UNet pipeline; only the denoiser is trained.
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
from recipes import emoji_download
from recipes.checkpoints import load_checkpoint, save_checkpoint
from recipes.emoji_loop import (
    Curve,
    FloatAttention,
    batch_indices,
    cyclic_schedule,
    weight_average,
)
from recipes.emoji_networks import SIZE, encode
from recipes.loop import (
    CHECKPOINT_SECONDS,
    LATENT_CHANNELS,
    add_noise,
    build_scheduler,
    tidy_autoencoder,
    tokenize,
)
from recipes.portable import make_portable

PROMPT_LENGTH = 120
"""Length to which the PixArt pipeline pads a prompt, in tokens; the padding is masked."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; see `emoji_networks.Recipe`."""

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
    """Return a diffusion transformer with cross-attention to the text.

    Its position embeddings are interpolated to the image size.
    """
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
    """Return the prediction of the transformer, with masked padding of the captions as in the pipeline."""
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
    """Train the denoiser; resume from `work/dit.pt`.

    Args:
        work: folder of checkpoints and the training curve.
        latents: of the training images.
        context: text embeddings of the captions, then of the empty caption.
        mask: 1 for the tokens of a caption, 0 for padding.
        recipe: hyperparameters.
        milestones: steps after which the averaged weights are saved to `milestone(work, step)`.

    Returns:
        The denoiser with averaged weights.
    """
    torch.manual_seed(recipe.seed)
    model = build_denoiser(recipe, context.shape[-1])
    average = weight_average(model, recipe.ema)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    schedule = cyclic_schedule(optimizer, recipe.cycles, recipe.warmup, recipe.decay)
    checkpoint, parts = work / "dit.pt", dict(model=model, average=average, optimizer=optimizer, schedule=schedule)
    start, scheduler = load_checkpoint(checkpoint, **parts), build_scheduler()
    every_image, empty = torch.arange(len(latents)), len(latents)
    steps, saved = sum(recipe.cycles), time.monotonic()
    with Curve(work / "dit.csv", "transformer", steps, start) as curve:
        for step in range(start, steps):
            index = batch_indices(every_image, recipe.batch, step, recipe.seed)
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            noisy, target, timesteps = add_noise(latents[index], scheduler, generator)
            dropped = torch.rand(len(index), generator=generator) < recipe.caption_dropout
            caption = torch.where(dropped, empty, index)
            with torch.autocast("cpu", torch.bfloat16), FloatAttention():
                predicted = denoise(compiled, noisy, timesteps, context[caption], mask[caption])
            loss = F.mse_loss(predicted.float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            curve.add(step, loss.item())
            if step + 1 in milestones:
                path = milestone(work, step + 1)
                save_file(average.module.state_dict(), path.with_suffix(".part"))
                os.replace(path.with_suffix(".part"), path)
            if time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == steps:
                save_checkpoint(checkpoint, step + 1, **parts)
                saved = time.monotonic()
    return average.module.eval()


def milestone(work: Path, step: int) -> Path:
    """Return the file to which `train` saves the averaged weights after a step."""
    return work / f"dit-{step}.safetensors"


@torch.no_grad()
def examples(
    base: Any, pixels: UInt8[Tensor, "count h w 3"], captions: list[str]
) -> tuple[
    Float[Tensor, "count 4 h_latent w_latent"], Float[Tensor, "count+1 length width"], Float[Tensor, "count+1 length"]
]:
    """Return latents, text embeddings of the captions and the empty caption, and the mask of their tokens."""
    tokens = tokenize(base.tokenizer, [*captions, ""])
    lengths = (tokens == base.tokenizer.eos_token_id).int().argmax(-1) + 1
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).float()
    return encode(base.vae, pixels), base.text_encoder(tokens).last_hidden_state, mask


def extend_positions(text_encoder: CLIPTextModel, length: int) -> CLIPTextModel:
    """Return the same text encoder for longer prompts.

    Its attention is causal, so the added positions change no earlier token.
    """
    config = copy.deepcopy(text_encoder.config)
    config.max_position_embeddings = length
    extended = CLIPTextModel(config)
    weights = text_encoder.state_dict()
    (name,) = (n for n in weights if n.endswith("position_embedding.weight"))
    weights[name] = F.pad(weights[name], (0, 0, 0, length - len(weights[name])))
    extended.load_state_dict(weights)
    return extended.eval()


def export(folder: Path, base: Any, denoiser: PixArtTransformer2DModel) -> None:
    """Save the `PixArtAlphaPipeline` in half precision, as safetensors only."""
    pipeline = PixArtAlphaPipeline(
        vae=base.vae,
        text_encoder=extend_positions(base.text_encoder, PROMPT_LENGTH),
        tokenizer=base.tokenizer,
        transformer=denoiser,
        scheduler=build_scheduler(),
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    tidy_autoencoder(folder)
    make_portable(folder)


def main(
    work: Annotated[Path, typer.Option(help="Folder for downloads, checkpoints and curves.")] = Path("reference-work"),
    out: Annotated[Path, typer.Option(help="Folder for the trained pipeline.")] = Path("data/reference-dit"),
) -> None:
    """Train the transformer pipeline. Rerun the same command to resume from the last checkpoint."""
    recipe = Recipe()
    base = load("reference", device="cpu", dtype="float32")
    emoji_download.download(work)
    emoji = [e for e in emoji_download.select_emoji(work) if e.category in recipe.focus]
    pixels = torch.from_numpy(emoji_download.render(emoji, SIZE, cache=work))
    latents, context, mask = examples(base, pixels, [e.caption for e in emoji])
    denoiser = train(work, latents, context, mask, recipe)
    export(out, base, denoiser)
    facts = {"recipe": asdict(recipe), "images": len(emoji), "machine": platform.processor()}
    shutil.copy(work / "dit.csv", out / "curve.csv")
    (out / "training.json").write_text(json.dumps({**facts, "torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
