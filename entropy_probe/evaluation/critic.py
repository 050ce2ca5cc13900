"""The critic: an image encoder and a text encoder for the domain of the bundled models, like a small CLIP.

It was trained contrastively (Radford et al. 2021, arXiv 2103.00020) on emoji rendered from vectors at 24 to 256 pixels
with their captions. No sampled image was part of its training.
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
from entropy_probe.deprecation import renamed_names
from entropy_probe.library_versions import dtype_argument
from entropy_probe.models import load_complete

SIDE = 96
"""Length in pixels to which the shorter side of an image is resized."""


class Critic(nn.Module):
    """Embeds images of any size, and captions, into one space in which an image is near its caption.

    A call with images returns their embeddings, as the `feature` network of torchmetrics does.

    Attributes:
        num_features: dimension of an embedding.
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
        """Return embeddings of length 1."""
        return self.embed(prepare(images))

    def embed(self, prepared: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return embeddings of length 1 of images that `prepare` returned."""
        return F.normalize(self.image_encoder(pixel_values=prepared).logits, dim=-1)

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Return embeddings of length 1. Captions that are too long for the tokenizer are truncated."""
        return self.embed_tokens(self.tokenize(captions).to(self.text_encoder.device))

    def tokenize(self, captions: Sequence[str]) -> Int[Tensor, "batch length"]:
        """Return token ids, padded to the maximum length."""
        encoded = self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        tokens: Tensor = encoded.input_ids
        return tokens

    def embed_tokens(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch features"]:
        """Return embeddings of length 1 of token ids that `tokenize` returned."""
        return F.normalize(self.text_encoder(tokens).text_embeds, dim=-1)


def prepare(images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 h w"]:
    """Resize the shorter side to `SIDE` pixels with antialiasing, and map bytes to [-1, 1].

    Examples:
        >>> prepare(torch.zeros(1, 3, 48, 96, dtype=torch.uint8)).shape
        torch.Size([1, 3, 96, 192])
    """
    height, width = images.shape[-2:]
    scale = SIDE / min(height, width)
    size = round(height * scale), round(width * scale)
    unit = images.float() / 127.5 - 1
    if size == (height, width):
        return unit
    return F.interpolate(unit, size, mode="bicubic", antialias=True).clamp(-1, 1)


def load_critic(folder: str | Path | None = None) -> Critic:
    """Load the bundled critic on the CPU, in evaluation mode.

    Args:
        folder: load a critic that its training recipe saved in this folder.

    Examples:
        >>> critic = load_critic()
        >>> critic(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, critic.num_features)
        True
    """
    path = bundled("critic") if folder is None else Path(folder)
    float32 = dtype_argument("transformers", torch.float32)
    critic = Critic(
        load_complete(ResNetForImageClassification, path / "image", **float32),
        load_complete(CLIPTextModelWithProjection, path / "text", **float32),
        CLIPTokenizer.from_pretrained(path / "tokenizer"),
    )
    return critic.eval().requires_grad_(False)


__getattr__ = renamed_names(__name__, load=load_critic)
