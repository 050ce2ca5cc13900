"""The networks and the tokenizer of the bundled UNet pipeline, before training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import CLIPTokenizer

from entropy_probe.models import encode_with
from recipes.loop import LATENT_CHANNELS, learn_tokenizer

SIZE = 64
"""Height and width, in pixels, of every image that any part of the reference is trained on."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the autoencoder, and of the denoiser with its text encoder.

    Attributes:
        latent_noise: noise added to the latents that the autoencoder decodes in training, in standard deviations.
        cycles: steps of each cycle of the learning rate.
        decay: final fraction of a cycle in which the learning rate falls to zero.
        wake_at, wake_variance: see `emoji_rescaling.minimum_variance_gains`.
        sharpen_at, sharpen_to: see `emoji_rescaling.maximum_entropy_gains`.
        broad_steps: steps on all images; later steps use the categories in `focus`.
        ema: decay of the weight average.
    """

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


def train_tokenizer(work: Path, captions: list[str], recipe: Recipe) -> CLIPTokenizer:
    """Train the tokenizer, or load the trained one from the work folder.

    A resumed training must load it: tokens of equal rank are numbered differently in every process.
    """
    finished = work / "tokenizer"
    if finished.exists():
        return CLIPTokenizer.from_pretrained(finished)
    tokenizer = learn_tokenizer(captions, recipe.vocabulary)
    tokenizer.save_pretrained(finished)
    return tokenizer


def build_autoencoder() -> AutoencoderTiny:
    """Return an autoencoder with four latent channels at a quarter of the height and width."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=LATENT_CHANNELS,
        upsampling_scaling_factor=2,
    )


def build_denoiser(recipe: Recipe) -> UNet2DConditionModel:
    """Return a UNet with self- and cross-attention at every level.

    It has few and narrow residual blocks, which leaves much of the work to the attention.
    """
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


def to_unit(pixels: UInt8[Tensor, "batch h w 3"]) -> Float[Tensor, "batch 3 h w"]:
    """Convert bytes to floats in [-1, 1], channels first."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(
    autoencoder: AutoencoderTiny, pixels: UInt8[Tensor, "count h w 3"]
) -> Float[Tensor, "count 4 h_latent w_latent"]:
    """Return the latents of images, multiplied by the scaling factor of the autoencoder."""
    return torch.cat([encode_with(autoencoder, to_unit(part)) for part in pixels.split(64)])
