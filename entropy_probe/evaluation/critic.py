"""The two encoders of the critic, and loading them.

Trained contrastively (Radford et al. 2021, arXiv 2103.00020) on emoji drawn from vectors at 24 to 256 pixels with their
captions, and on nothing that a generator drew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, ResNetForImageClassification

from entropy_probe.bundled import bundled

SIDE = 96
"""Pixels to which the shorter side of an image is brought before it is looked at."""


class Critic(nn.Module):
    """Embeds images of any size and captions into one space, where an image is near its caption.

    Called with images it returns their embeddings, as the `feature` network of torchmetrics does.

    Attributes:
        num_features: width of an embedding.
    """

    def __init__(
        self,
        image_encoder: ResNetForImageClassification,
        text_encoder: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
    ) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder, self.tokenizer = image_encoder, text_encoder, tokenizer
        self.num_features: int = text_encoder.config.projection_dim

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Embeddings of length 1."""
        return self.embed(prepare(images))

    def embed(self, prepared: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Embeddings of length 1 of images as `prepare` returns them."""
        return F.normalize(self.image_encoder(pixel_values=prepared).logits, dim=-1)

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Embeddings of length 1; what is longer than the tokenizer allows is cut off."""
        return self.embed_tokens(self.tokenize(captions).to(self.text_encoder.device))

    def tokenize(self, captions: Sequence[str]) -> Int[Tensor, "batch length"]:
        """Token numbers, padded."""
        encoded = self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        tokens: Tensor = encoded.input_ids
        return tokens

    def embed_tokens(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch features"]:
        """As `embed_captions`, of token numbers."""
        return F.normalize(self.text_encoder(tokens).text_embeds, dim=-1)


def prepare(images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 h w"]:
    """Bring the shorter side to `SIDE` pixels, without aliasing, and bytes to [-1, 1]."""
    height, width = images.shape[-2:]
    scale = SIDE / min(height, width)
    size = round(height * scale), round(width * scale)
    unit = images.float() / 127.5 - 1
    if size == (height, width):
        return unit
    return F.interpolate(unit, size, mode="bicubic", antialias=True).clamp(-1, 1)


def load(folder: str | Path | None = None) -> Critic:
    """The bundled critic, or one that the recipe saved in `folder`; on the CPU, ready to use."""
    where = bundled("critic") if folder is None else Path(folder)
    critic = Critic(
        ResNetForImageClassification.from_pretrained(where / "image", dtype=torch.float32, use_safetensors=True),
        CLIPTextModelWithProjection.from_pretrained(where / "text", dtype=torch.float32, use_safetensors=True),
        CLIPTokenizer.from_pretrained(where / "tokenizer"),
    )
    return critic.eval().requires_grad_(False)
