"""Train the critic, a small contrastive model of images and captions: `python -m recipes.critic`."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
)

from entropy_probe.evaluation.critic import Critic, prepare
from entropy_probe.reference.drawings import Emoji
from recipes import emoji_download
from recipes.checkpoints import load_checkpoint, save_checkpoint
from recipes.emoji_loop import Curve, batch_indices
from recipes.loop import learn_tokenizer
from recipes.portable import make_portable

CHECKPOINT_STEPS = 250


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters.

    Attributes:
        sides: sizes, in pixels, at which the vector drawings are rendered.
        shapes: canvas shapes (height, width), as multiples of the shorter side; a batch has one shape.
        square: fraction of the batches that stay square.
        settle: further steps after the first `steps`, in which the statistics of batch normalisation are frozen. They
            depend on the shape of the batch, and running statistics from square images are wrong for wide ones.
        settle_rate: maximum of the learning rate in these steps, as a fraction of `rate`.
        settle_square: fraction of the batches that stay square in these steps.
        styleless: fraction of the captions that do not name the style.
        rotation: maximum rotation, in degrees.
        zoom, shift: maximum change of scale (logarithmic) and position, as fractions of the size.
        tint: maximum change of a colour channel, as a fraction.
    """

    seed: int = 0
    steps: int = 3_000
    batch: int = 128
    rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    sides: tuple[int, ...] = (24, 32, 48, 64, 96, 128, 192, 256)
    shapes: tuple[tuple[float, float], ...] = ((1, 2), (2, 1), (1, 3), (4 / 3, 1), (1, 16 / 9))
    square: float = 0.7
    settle: int = 600
    settle_rate: float = 0.3
    settle_square: float = 0.4
    styleless: float = 0.5
    rotation: float = 12.0
    zoom: float = 0.2
    shift: float = 0.1
    tint: float = 0.15
    channels: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    features: int = 128
    text_width: int = 128
    text_layers: int = 2
    text_length: int = 16
    vocabulary: int = 1600


def build(tokenizer: CLIPTokenizer, recipe: Recipe) -> Critic:
    """Return a critic of a small ResNet and a small CLIP text encoder, with default initialisation."""
    image_encoder = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=recipe.channels[0],
            hidden_sizes=list(recipe.channels),
            depths=list(recipe.depths),
            layer_type="basic",
            num_labels=recipe.features,
        )
    )
    text_encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=4,
            max_position_embeddings=recipe.text_length,
            projection_dim=recipe.features,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return Critic(image_encoder, text_encoder, tokenizer)


def prepare_bytes(images: UInt8[np.ndarray, "count side side 3"]) -> UInt8[Tensor, "count 3 resized resized"]:
    """Return images resized as the critic does it, as bytes."""
    parts = torch.from_numpy(images).permute(0, 3, 1, 2).split(256)
    return torch.cat([((prepare(part) + 1) * 127.5).round().byte() for part in parts])


def vary(
    images: UInt8[Tensor, "batch 3 side side"], recipe: Recipe, square: float, generator: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Return randomly rotated, zoomed, shifted and tinted images in [-1, 1].

    With probability 1 - `square` the batch is put on a larger white canvas, of a shape from `recipe.shapes`.
    """

    def uniform(low: float, high: float) -> Float[Tensor, " batch"]:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    angle = uniform(-recipe.rotation, recipe.rotation).deg2rad()
    zoom = torch.exp(uniform(-recipe.zoom, recipe.zoom))
    shift = torch.stack([uniform(-recipe.shift, recipe.shift), uniform(-recipe.shift, recipe.shift)], -1)
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    affine = torch.cat([zoom.view(-1, 1, 1) * turned, 2 * shift[..., None]], -1)
    darkness = 255.0 - images.float()  # white is zero, the value with which grid_sample and pad fill
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    darkness = F.grid_sample(darkness, grid, align_corners=False)
    darkness = darkness * (1 + torch.stack([uniform(-recipe.tint, recipe.tint) for _ in range(3)], -1))[..., None, None]
    if torch.rand((), generator=generator) >= square:
        tall, wide = recipe.shapes[int(torch.randint(len(recipe.shapes), (), generator=generator))]
        side = images.shape[-1]
        more_h, more_w = round(side * tall) - side, round(side * wide) - side
        darkness = F.pad(darkness, (more_w // 2, more_w - more_w // 2, more_h // 2, more_h - more_h // 2))
    return (1 - darkness / 127.5).clamp(-1, 1)


def contrastive_loss(
    images: Float[Tensor, "batch features"],
    texts: Float[Tensor, "batch features"],
    same: Bool[Tensor, "batch batch"],
    logit_scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the symmetric cross-entropy of Radford et al. (2021), https://arxiv.org/abs/2103.00020.

    Captions that are the `same` share the target probability equally.
    """
    logits = logit_scale * images @ texts.T
    target = same / same.sum(-1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def rate_factor(step: int, recipe: Recipe) -> float:
    """Return the factor of the learning rate at a step.

    It warms up linearly and falls to zero along a half cosine. From step `recipe.steps` on it falls from `settle_rate`
    to zero along a second half cosine.
    """
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    first, length, top = recipe.warmup, recipe.steps - recipe.warmup, 1.0
    if step >= recipe.steps:
        first, length, top = recipe.steps, recipe.settle, recipe.settle_rate
    return top * (1 + math.cos(math.pi * (step - first) / length)) / 2


def train(work: Path, emoji: list[Emoji], recipe: Recipe) -> Critic:
    """Train the critic; resume from `work/critic.pt`."""
    torch.manual_seed(recipe.seed)
    names = [e.name.replace("-", " ") for e in emoji]
    captions = [e.caption for e in emoji]
    stored = work / "critic-tokenizer"
    if not stored.exists():
        learn_tokenizer(captions + names, recipe.vocabulary).save_pretrained(stored)
    critic = build(CLIPTokenizer.from_pretrained(stored, model_max_length=recipe.text_length), recipe)
    critic.image_encoder.to(memory_format=torch.channels_last)
    temperature = nn.ParameterList([torch.tensor(math.log(1 / 0.07))])
    parameters = [*critic.parameters(), *temperature]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    schedule = LambdaLR(optimizer, partial(rate_factor, recipe=recipe))
    parts = dict(critic=critic, temperature=temperature, optimizer=optimizer, schedule=schedule)
    checkpoint, steps = work / "critic.pt", recipe.steps + recipe.settle
    start = load_checkpoint(checkpoint, **parts)
    styled, plain = critic.tokenize(captions), critic.tokenize(names)
    images = {side: prepare_bytes(emoji_download.render(emoji, side, cache=work)) for side in recipe.sides}
    every_image = torch.arange(len(emoji))
    critic.train()
    with Curve(work / "critic.csv", "critic", steps, start) as curve:
        for step in range(start, steps):
            settling = step >= recipe.steps
            if settling:
                _freeze_statistics(critic)
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            index = batch_indices(every_image, recipe.batch, step, recipe.seed)
            side = recipe.sides[int(torch.randint(len(recipe.sides), (), generator=generator))]
            pixels = vary(
                images[side][index], recipe, recipe.settle_square if settling else recipe.square, generator
            ).to(memory_format=torch.channels_last)
            styleless = torch.rand(len(index), 1, generator=generator) < recipe.styleless
            caption = torch.where(styleless, plain[index], styled[index])
            same = (caption[:, None] == caption[None]).all(-1)
            scale = temperature[0].exp().clamp(max=100)
            loss = contrastive_loss(critic.embed(pixels), critic.embed_tokens(caption), same, scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            curve.add(step, loss.item())
            if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
                save_checkpoint(checkpoint, step + 1, **parts)
    return critic.eval()


def _freeze_statistics(critic: Critic) -> None:
    for module in critic.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def export(critic: Critic, folder: Path) -> None:
    """Save both encoders, as safetensors, and the tokenizer."""
    critic.image_encoder.save_pretrained(folder / "image")
    critic.text_encoder.save_pretrained(folder / "text")
    critic.tokenizer.save_pretrained(folder / "tokenizer")
    make_portable(folder)


def main(
    work: Annotated[Path, typer.Option(help="Folder for downloads, checkpoints and curves.")] = Path("critic-work"),
    out: Annotated[Path, typer.Option(help="Folder for the trained critic.")] = Path("data/critic"),
) -> None:
    """Train the critic from scratch. Rerun the same command to resume from the last checkpoint."""
    recipe = Recipe()
    emoji_download.download(work)
    emoji = emoji_download.select_emoji(work)
    critic = train(work, emoji, recipe)
    export(critic.half(), out)
    facts = {"recipe": asdict(recipe), "images": len(emoji), "machine": platform.processor()}
    (out / "training.json").write_text(json.dumps({**facts, "torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
