"""The networks that judge pictures, by name: the critic for the reference's domain, any CLIP for photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from entropy_probe.errors import InputError
from entropy_probe.pipelines import PictureFolder, Pictures
from entropy_probe.validation.defects import WHITE, Colour
from entropy_probe.validation.fidelity import Embedder

CRITIC = "critic"
"""The name of the network that judges pictures of the bundled models' domain."""


@dataclass(frozen=True)
class Judge:
    """What pictures are judged with.

    Attributes:
        network: looks at pictures and captions.
        real: the true distribution.
        background: of its pictures, where that is known; see `defects`.
    """

    network: Embedder
    real: Pictures
    background: Colour | None = None


def judge_for(network: str, pictures: str | Path | None = None) -> Judge:
    """The judge of a name.

    Args:
        network: `critic`, or the hub id or folder of a CLIP model.
        pictures: a folder of true pictures (see `pipelines.PictureFolder`); the critic has its own drawings.

    Raises:
        InputError: if the network cannot be loaded, or needs pictures and none are given.
    """
    from entropy_probe.critic import load
    from entropy_probe.reference import pictures as drawings

    if network == CRITIC:
        if pictures is None:
            return Judge(load(), drawings(), WHITE)
        return Judge(load(), PictureFolder.open(pictures), WHITE)
    if pictures is None:
        raise InputError(f"judging with {network!r} needs true pictures: give a folder of them with --images")
    real = PictureFolder.open(pictures)
    return Judge(Clip.load(network), real)


class Clip(nn.Module):
    """A CLIP model of transformers as a judge.

    Attributes:
        num_features: width of an embedding.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.num_features: int = model.config.projection_dim

    @classmethod
    def load(cls, model: str | Path) -> Clip:
        """Load by hub id or folder; safetensors only.

        Raises:
            InputError: if it cannot be had, saying how to get it.
        """
        from transformers import CLIPModel, CLIPProcessor

        safe: dict[str, Any] = {"trust_remote_code": False}
        try:
            loaded = CLIPModel.from_pretrained(model, use_safetensors=True, **safe).eval().requires_grad_(False)
            return cls(loaded, CLIPProcessor.from_pretrained(model, **safe))
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"the network {str(model)!r} is not at hand: give `critic`, the hub id of a CLIP model, or the folder "
                f"of one that was saved with save_pretrained ({reason})"
            ) from error

    def forward(self, pictures: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Embeddings of length 1."""
        images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
        pixels = self.processor(images=images, return_tensors="pt").pixel_values
        vision = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        return F.normalize(self.model.visual_projection(vision.pooler_output).float(), dim=-1)

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Embeddings of length 1; what is longer than the tokenizer allows is cut off."""
        tokens = self.processor(text=list(captions), padding=True, truncation=True, return_tensors="pt")
        text = self.model.text_model(**tokens.to(self.model.device))
        return F.normalize(self.model.text_projection(text.pooler_output).float(), dim=-1)
