"""The pipelines of the benchmarks, and one sampling run of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from entropy_probe.models import load, quiet_libraries, sample_images
from entropy_probe.reference import prompts
from recipes.loop import learn_tokenizer


@dataclass(frozen=True)
class Sampling:
    """A sampling run of one batch.

    Attributes:
        model: `reference`, or `sd15`.
        size: height and width of the images, in pixels.
        images: images in the batch; guidance doubles the batch of the denoiser.
        steps: sampling steps.
    """

    model: str
    size: int
    images: int
    steps: int

    @property
    def tokens(self) -> int:
        """Image tokens of the finest self-attention."""
        return (self.size // {"reference": 4, "sd15": 8}[self.model]) ** 2

    def __call__(self) -> Any:
        chosen, seeds = prompts()[: self.images], list(range(self.images))
        return sample_images(
            pipeline(self.model), chosen, (self.size,) * 2, seeds, steps=self.steps, guidance_scale=4.0
        )


@cache
def pipeline(model: str) -> Any:
    quiet_libraries()
    return sd15() if model == "sd15" else load(model, device="cpu")


def fill_randomly(module: nn.Module) -> None:
    """Give every weight a uniform random value that keeps the size of activations, and every bias 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.uniform_(-1, 1).mul_(parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(name.endswith("weight"))


def sd15() -> StableDiffusionPipeline:
    """Return the layout of Stable Diffusion 1.5 with half its channels and heads and a small autoencoder.

    The weights are random. Half the heads of the same width cost half the attention; half the channels cost a quarter
    of everything else. The relative overhead of measuring is therefore larger than in the full model.
    """
    torch.manual_seed(0)
    tokenizer = learn_tokenizer(list(prompts()), 500)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=768, num_hidden_layers=1, num_attention_heads=12,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    tokenizer.model_max_length = 77
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=4, block_out_channels=(160, 320, 640, 640)
        )
    unet = unet.to_empty(device="cpu").eval()
    fill_randomly(unet)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4),
        text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
