"""The recipe that trained the reference pipeline: `python -m recipes.emoji_unet`.

Three stages, each resumable from its checkpoint in the work folder: an autoencoder, then a text encoder and a denoiser
together, then the export of a `StableDiffusionPipeline` in half precision. Everything is trained at `SIZE` pixels only.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from entropy_probe.attention import capture
from entropy_probe.models import encode_with
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

SIZE = 64
"""Height and width, in pixels, of every image that any part of the reference is trained on."""

TEXT_LENGTH = 16
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the two trained stages."""

    seed: int = 0
    autoencoder_steps: int = 3500
    autoencoder_batch: int = 32
    autoencoder_rate: float = 2e-3
    latent_noise: float = 0.05
    cycles: tuple[int, ...] = (6_000, 4_000)
    batch: int = 48
    rate: float = 8e-4
    warmup: int = 300
    decay: float = 0.3
    wake_at: int = 1_870
    wake_variance: float = 4.0
    sharpen_at: int = 6_000
    sharpen_to: float = 0.5
    broad_steps: int = 2_600
    focus: tuple[str, ...] = ("Animals & Nature", "Food & Drink")
    caption_dropout: float = 0.1
    ema: float = 0.999
    channels: tuple[int, ...] = (64, 160)
    layers_per_block: int = 1
    transformer_layers: int = 2
    head_width: int = 32
    text_width: int = 192
    text_layers: int = 2
    vocabulary: int = 1600


def build_tokenizer(captions: list[str], vocabulary: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges are learnt from the captions."""
    from tokenizers import trainers

    tokenizer = CLIPTokenizer(model_max_length=TEXT_LENGTH)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model = tokenizer.backend_tokenizer
    model.train_from_iterator(captions, trainer)
    learnt = json.loads(model.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    return CLIPTokenizer(vocab=learnt["vocab"], merges=merges, model_max_length=TEXT_LENGTH)


def train_tokenizer(work: Path, captions: list[str], recipe: Recipe) -> CLIPTokenizer:
    """Learn the tokenizer, or load the one learnt before: tokens of equal rank are numbered anew in every process."""
    finished = work / "tokenizer"
    if finished.exists():
        return CLIPTokenizer.from_pretrained(finished)
    tokenizer = build_tokenizer(captions, recipe.vocabulary)
    tokenizer.save_pretrained(finished)
    return tokenizer


def build_autoencoder() -> AutoencoderTiny:
    """Four latent channels at a quarter of the height and width."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=LATENT_CHANNELS,
        upsampling_scaling_factor=2,
    )


def build_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text encoder, trained from nothing together with the denoiser."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=recipe.text_width // recipe.head_width,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=recipe.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_denoiser(recipe: Recipe) -> UNet2DConditionModel:
    """Self- and cross-attention at every level; few, thin residual blocks, so that much is left to the attention."""
    levels = len(recipe.channels)
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=recipe.channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=recipe.layers_per_block,
        transformer_layers_per_block=recipe.transformer_layers,
        attention_head_dim=tuple(c // recipe.head_width for c in recipe.channels),
        cross_attention_dim=recipe.text_width,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Cosine schedule, v-prediction: the last timestep is pure noise, which white images need."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def velocity(
    latents: Float[Tensor, "batch 4 h w"],
    noise: Float[Tensor, "batch 4 h w"],
    alpha_bar: Float[Tensor, "batch 1 1 1"],
) -> tuple[Float[Tensor, "batch 4 h w"], Float[Tensor, "batch 4 h w"]]:
    """Noised latents and the v-prediction target of Salimans and Ho (2022)."""
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return signal * latents + sigma * noise, signal * noise - sigma * latents


def noised(
    latents: Float[Tensor, "batch 4 h w"], alphas: Float[Tensor, " timesteps"], generator: torch.Generator
) -> tuple[Float[Tensor, "batch 4 h w"], Float[Tensor, "batch 4 h w"], Int[Tensor, " batch"]]:
    """Noised latents, targets and timesteps, the latter spread evenly over the schedule."""
    noise = torch.randn(latents.shape, generator=generator)
    spread = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
    timesteps = (spread * len(alphas)).long()
    return *velocity(latents, noise, alphas[timesteps].view(-1, 1, 1, 1)), timesteps


def to_unit(pixels: UInt8[Tensor, "batch h w 3"]) -> Float[Tensor, "batch 3 h w"]:
    """Bytes to [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(work: Path, pixels: UInt8[Tensor, "count h w 3"], recipe: Recipe) -> AutoencoderTiny:
    """Train the autoencoder, or load the finished one; its `scaling_factor` gives latents of unit variance."""
    finished = work / "vae"
    if finished.exists():
        return AutoencoderTiny.from_pretrained(finished, use_safetensors=True).eval()
    torch.manual_seed(recipe.seed)
    autoencoder = build_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=recipe.autoencoder_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.autoencoder_rate, total_steps=recipe.autoencoder_steps, pct_start=0.05
    )
    curve = Curve(work / "autoencoder.csv", "autoencoder", recipe.autoencoder_steps)
    with curve:
        everything = torch.arange(len(pixels))
        for step in range(recipe.autoencoder_steps):
            index = batch(everything, recipe.autoencoder_batch, step, recipe.seed)
            image = to_unit(pixels[index]).to(memory_format=torch.channels_last)
            shift = torch.randint(-4, 5, (2,)).tolist()
            image = image.roll(shift, dims=(2, 3))
            with torch.autocast("cpu", torch.bfloat16):
                latents = autoencoder.encode(image).latents
                latents = latents + recipe.latent_noise * torch.randn_like(latents) * latents.detach().std()
                drawn = autoencoder.decode(latents).sample
            error = drawn.float() - image
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


@torch.no_grad()
def encode(
    autoencoder: AutoencoderTiny, pixels: UInt8[Tensor, "count h w 3"]
) -> Float[Tensor, "count 4 h_latent w_latent"]:
    """Latents of all images; of unit variance once the autoencoder knows its scaling factor."""
    return torch.cat([encode_with(autoencoder, to_unit(part)) for part in pixels.split(64)])


def train_denoiser(
    work: Path,
    latents: Float[Tensor, "count 4 h w"],
    captions: list[str],
    focus: Tensor,
    tokenizer: CLIPTokenizer,
    recipe: Recipe,
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Train text encoder and denoiser jointly, resuming from `work/denoiser.pt`; returns their averaged weights.

    After `broad_steps` on everything the steps go on with the images of index `focus`.
    """
    everything = torch.arange(len(latents))
    torch.manual_seed(recipe.seed)
    model = nn.ModuleDict({"text": build_text_encoder(recipe, tokenizer), "unet": build_denoiser(recipe)})
    average = copy.deepcopy(model).requires_grad_(False)
    denoise = torch.compile(model["unet"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=1e-2, betas=(0.9, 0.98))
    checkpoint = work / "denoiser.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    tokens = tokenize(tokenizer, captions)
    empty = tokenize(tokenizer, [""])
    alphas = build_scheduler().alphas_cumprod
    saved = time.monotonic()
    steps = sum(recipe.cycles)
    curve = Curve(work / "denoiser.csv", "denoiser", steps, start)
    with curve:
        for step in range(start, steps):
            index = batch(everything if step < recipe.broad_steps else focus, recipe.batch, step, recipe.seed)
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * rate_at(step, recipe.cycles, recipe.warmup, recipe.decay)
            noisy, target, timesteps = noised(latents[index], alphas, generator)
            dropped = torch.rand(len(index), 1, generator=generator) < recipe.caption_dropout
            prompt = torch.where(dropped, empty, tokens[index])
            if step in (recipe.wake_at, recipe.sharpen_at):
                frame = _measure(model, noisy, timesteps, prompt)
                gains = _waking(frame, recipe) if step == recipe.wake_at else _sharpening(frame, recipe)
                for network in (model, average):
                    _scale_logits(network["unet"], gains)
            with torch.autocast("cpu", torch.bfloat16), FloatAttention():
                context = model["text"](prompt).last_hidden_state
                predicted = denoise(noisy, timesteps, context).sample
            loss = F.mse_loss(predicted.float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average_into(average, model, min(recipe.ema, (1 + step) / (10 + step)))
            curve.add(step, loss.item())
            if time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == steps:
                save_checkpoint(checkpoint, step + 1, model=model, average=average, optimizer=optimizer)
                saved = time.monotonic()
    return average["text"].eval(), average["unet"].eval()


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers, padded to `TEXT_LENGTH`."""
    encoded = tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def export(
    folder: Path,
    autoencoder: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    denoiser: UNet2DConditionModel,
) -> None:
    """Save the `StableDiffusionPipeline` in half precision, safetensors only."""
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


def tidy_autoencoder(folder: Path) -> None:
    """Take out of a saved autoencoder's configuration what it derives itself, and warns of, and where it came from."""
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    kept = {name: value for name, value in config.items() if name not in ("block_out_channels", "_name_or_path")}
    path.write_text(json.dumps(kept, indent=2) + "\n")


SHARPER = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


@torch.no_grad()
def _measure(model: nn.ModuleDict, noisy: Tensor, timesteps: Tensor, prompt: Tensor) -> pd.DataFrame:
    """Mean entropy, logit variance and tokens of every self-attention layer (rows) at the gains `SHARPER`."""
    with capture(model["unet"], distance=False, scale_factors=SHARPER[1:]) as captured:
        model["unet"](noisy, timesteps, model["text"](prompt).last_hidden_state)
    frame = captured.frame()
    means = frame[frame["kind"] == "self"].groupby(["layer", "scale_factor"])
    return means[["entropy", "logit_variance", "key_tokens"]].mean()


def _waking(means: pd.DataFrame, recipe: Recipe) -> dict[str, float]:
    """By what to multiply the logits of each layer so that their variance is at least `wake_variance`.

    A layer that attends uniformly learns where to look very slowly, and the coarse level had stayed uniform: its
    residual blocks see the whole image anyhow. Scaled up once, it has something to unlearn or to use.
    """
    variance = means.xs(1.0, level="scale_factor")["logit_variance"]
    return {layer: math.sqrt(recipe.wake_variance / v) for layer, v in variance.items() if v < recipe.wake_variance}


def _sharpening(means: pd.DataFrame, recipe: Recipe) -> dict[str, float]:
    """By what to multiply the logits of each layer so that its entropy is at most `sharpen_to` of the greatest, ln T.

    No scaling factor gives N tokens more entropy than ln N. Layers nearer to uniform than that at the training size
    leave nothing to restore at half of it, where ln N = ln T - 1.39.
    """
    gains = {}
    for layer, curve in means.groupby(level="layer"):
        target = recipe.sharpen_to * math.log(curve["key_tokens"].iloc[0])
        entropy = curve["entropy"].to_numpy()
        if entropy[0] > target:
            gains[layer] = math.exp(np.interp(-target, -entropy, np.log(SHARPER)))
    return gains


@torch.no_grad()
def _scale_logits(denoiser: nn.Module, gains: dict[str, float]) -> None:
    for layer, gain in gains.items():
        attention: Any = denoiser.get_submodule(layer)
        attention.to_q.weight.mul_(math.sqrt(gain))
        attention.to_k.weight.mul_(math.sqrt(gain))


def main(
    work: Annotated[Path, typer.Option(help="Folder for downloads, checkpoints and curves.")] = Path("reference-work"),
    out: Annotated[Path, typer.Option(help="Where the finished pipeline is saved.")] = Path("data/reference"),
) -> None:
    """Train the reference pipeline from nothing; restarted, it goes on from the last checkpoint."""
    recipe = Recipe()
    emoji_data.fetch(work)
    emoji = emoji_data.load(work)
    captions = [e.caption for e in emoji]
    pixels = torch.from_numpy(emoji_data.images(emoji, SIZE, cache=work))
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
