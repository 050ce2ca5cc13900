"""Pipelines with the layouts of SDXL and Flux and random weights: their attention costs what the real one costs."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn

from benchmarks.models import fill_randomly


def materialise(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Give a module on the meta device random weights."""
    module = module.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    fill_randomly(module)
    return module


def sdxl(device: str, dtype: torch.dtype, small: bool) -> tuple[Any, dict[str, Any]]:
    """Return a pipeline with SDXL's UNet, without text encoders and autoencoder, and the arguments of its call."""
    channels, depth, heads = (
        ((32, 64, 64), (1, 1, 1), (2, 4, 4)) if small else ((320, 640, 1280), (1, 2, 10), (5, 10, 20))
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=16 if small else 128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=channels, transformer_layers_per_block=depth, attention_head_dim=heads,
            use_linear_projection=True, cross_attention_dim=2048, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=None, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        unet=materialise(unet, device, dtype), scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip
    text, pooled = (torch.randn(shape).to(device, dtype) for shape in ((2, 77, 2048), (2, 1280)))
    return pipeline, {
        "prompt_embeds": text[:1], "negative_prompt_embeds": text[1:],
        "pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:], "guidance_scale": 5.0,
    }  # fmt: skip


def flux(device: str, dtype: torch.dtype, small: bool) -> tuple[Any, dict[str, Any]]:
    """Return a pipeline with Flux's transformer, without text encoders and autoencoder, and the arguments of its call.

    With less than 32 GiB of GPU memory, it has a quarter of the layers: their number changes no ratio.
    """
    memory = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else 0
    layers = (1, 1) if small else (19, 38) if memory > 2**35 else (5, 9)
    heads = {"num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)} if small else {}
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            num_layers=layers[0], num_single_layers=layers[1], guidance_embeds=True, **heads
        )
    pipeline = FluxPipeline(
        vae=None, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        transformer=materialise(transformer, device, dtype), scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    text, pooled = (torch.randn(shape).to(device, dtype) for shape in ((1, 512, 4096), (1, 768)))
    return pipeline, {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "guidance_scale": 3.5}


LAYOUTS = {"sdxl": sdxl, "flux": flux}
