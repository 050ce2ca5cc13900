"""UNets, text to image: small random models of the real diffusers classes."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    StableCascadeUNet,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn

from .family import Attention, Family

BATCH = 2
TOKENS = 7
"""Text tokens of a prompt."""


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padding_mask(tokens: int = TOKENS) -> Tensor:
    """Return 1 for the tokens of a prompt and 0 for its padding; the second prompt is shorter."""
    lengths = torch.tensor([[tokens - 1], [tokens - 3]])
    return (torch.arange(tokens) < lengths).long()


def steps(value: float) -> Tensor:
    return torch.full((BATCH,), value)


def latents(model: nn.Module, height: int, width: int) -> Tensor:
    return randn(BATCH, model.config.in_channels, height, width)


def condition_unet(**config: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    shared = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 8}
    return UNet2DConditionModel(**{**shared, **config}).eval()


def cross_attention(levels: Sequence[tuple[str, int]]) -> dict[str, Attention]:
    """Return the self- and cross-attention of transformer blocks, from the stride of each UNet block."""
    return {
        f"{block}.attentions.*.{layer}": Attention(kind, stride)
        for block, stride in levels
        for layer, kind in (("attn1", "self"), ("attn2", "cross"))
    }


STABLE_DIFFUSION = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32, 32),
    "cross_attention_dim": 24,
}
STABLE_DIFFUSION_ATTENTION = cross_attention(
    [("down_blocks.0", 1), ("down_blocks.1", 2), ("mid_block", 4), ("up_blocks.1", 2), ("up_blocks.2", 1)]
)


def stable_diffusion_15() -> nn.Module:
    return condition_unet(**STABLE_DIFFUSION, attention_head_dim=2)


def stable_diffusion_21() -> nn.Module:
    return condition_unet(**STABLE_DIFFUSION, attention_head_dim=(2, 4, 4), use_linear_projection=True)


def stable_diffusion_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "sample": latents(model, height, width),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": randn(BATCH, TOKENS, model.config.cross_attention_dim, seed=2),
        "timestep_cond": None,
        "cross_attention_kwargs": None,
        "added_cond_kwargs": None,
        "return_dict": False,
    }


SDXL_POOLED = 16
SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 16, 32),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 4),
    "use_linear_projection": True,
    "cross_attention_dim": 24,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + SDXL_POOLED,
}
SDXL_ATTENTION = cross_attention(
    [("down_blocks.1", 2), ("down_blocks.2", 4), ("mid_block", 4), ("up_blocks.0", 4), ("up_blocks.1", 2)]
)


def sdxl() -> nn.Module:
    return condition_unet(**SDXL)


def kolors() -> nn.Module:
    return condition_unet(**SDXL, encoder_hid_dim=40, encoder_hid_dim_type="text_proj")


def sdxl_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    text = model.config.encoder_hid_dim or model.config.cross_attention_dim
    size = (8.0 * height, 8.0 * width)
    return {
        **stable_diffusion_inputs(model, height, width),
        "encoder_hidden_states": randn(BATCH, TOKENS, text, seed=2),
        "added_cond_kwargs": {
            "text_embeds": randn(BATCH, SDXL_POOLED, seed=3),
            "time_ids": torch.tensor([[*size, 0.0, 0.0, *size]] * BATCH),
        },
    }


def deepfloyd_if() -> nn.Module:
    return condition_unet(
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(16, 16, 32),
        attention_head_dim=8,
        act_fn="gelu",
        cross_attention_dim=32,
        cross_attention_norm="group_norm",
        encoder_hid_dim=24,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift",
        resnet_skip_time_act=True,
        resnet_out_scale_factor=1.414,
    )


def deepfloyd_if_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "sample": latents(model, height, width),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": randn(BATCH, TOKENS, model.config.encoder_hid_dim, seed=2),
        "cross_attention_kwargs": None,
        "return_dict": False,
    }


CASCADE_BLOCK = ("SDCascadeResBlock", "SDCascadeTimestepBlock")


def stable_cascade_prior() -> nn.Module:
    torch.manual_seed(0)
    return StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=16,
        patch_size=1,
        conditioning_dim=24,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        block_types_per_layer=((*CASCADE_BLOCK, "SDCascadeAttnBlock"),) * 2,
        clip_text_in_channels=20,
        clip_text_pooled_in_channels=12,
        clip_image_in_channels=8,
        switch_level=(False,),
    ).eval()


def stable_cascade_prior_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "sample": latents(model, height, width),
        "timestep_ratio": steps(0.5),
        "clip_text_pooled": randn(BATCH, 1, model.config.clip_text_pooled_in_channels, seed=2),
        "clip_text": randn(BATCH, TOKENS, model.config.clip_text_in_channels, seed=3),
        "clip_img": randn(BATCH, 1, model.config.clip_image_in_channels, seed=4),
        "return_dict": False,
    }


def stable_cascade_decoder() -> nn.Module:
    torch.manual_seed(0)
    return StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=16,
        patch_size=2,
        conditioning_dim=24,
        block_out_channels=(16, 32),
        num_attention_heads=(0, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        up_blocks_repeat_mappers=(2, 2),
        block_types_per_layer=(CASCADE_BLOCK, (*CASCADE_BLOCK, "SDCascadeAttnBlock")),
        clip_text_pooled_in_channels=12,
        clip_seq=3,
        effnet_in_channels=8,
        timestep_conditioning_type=("sca",),
    ).eval()


def stable_cascade_decoder_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "sample": latents(model, height, width),
        "timestep_ratio": steps(0.5),
        "clip_text_pooled": randn(BATCH, 1, model.config.clip_text_pooled_in_channels, seed=2),
        "effnet": randn(BATCH, model.config.effnet_in_channels, 3, 3, seed=3),
        "return_dict": False,
    }


def unconditional() -> nn.Module:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
    ).eval()


def unconditional_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {"sample": latents(model, height, width), "timestep": torch.tensor(500), "return_dict": False}


FAMILIES: list[Family] = [
    Family(
        name="Stable Diffusion 1.5",
        pipeline="StableDiffusionPipeline",
        build=stable_diffusion_15,
        inputs=stable_diffusion_inputs,
        attention=STABLE_DIFFUSION_ATTENTION,
    ),
    Family(
        name="Stable Diffusion 2.1",
        pipeline="StableDiffusionPipeline",
        build=stable_diffusion_21,
        inputs=stable_diffusion_inputs,
        attention=STABLE_DIFFUSION_ATTENTION,
    ),
    Family(
        name="SDXL",
        pipeline="StableDiffusionXLPipeline",
        build=sdxl,
        inputs=sdxl_inputs,
        attention=SDXL_ATTENTION,
    ),
    Family(
        name="Kolors",
        pipeline="KolorsPipeline",
        build=kolors,
        inputs=sdxl_inputs,
        attention=SDXL_ATTENTION,
    ),
    Family(
        name="DeepFloyd IF",
        pipeline="IFPipeline",
        build=deepfloyd_if,
        inputs=deepfloyd_if_inputs,
        attention={
            "down_blocks.1.attentions.?": Attention("joint", 2),
            "down_blocks.2.attentions.?": Attention("joint", 4),
            "mid_block.attentions.?": Attention("joint", 4),
            "up_blocks.0.attentions.?": Attention("joint", 4),
            "up_blocks.1.attentions.?": Attention("joint", 2),
        },
        notes="queries are image tokens; keys are text tokens, then image tokens; a model of pixels, not latents",
        image="last",
    ),
    Family(
        name="Stable Cascade prior",
        pipeline="StableCascadePriorPipeline",
        build=stable_cascade_prior,
        inputs=stable_cascade_prior_inputs,
        attention={"down_blocks.*.attention": Attention("joint", 1), "up_blocks.*.attention": Attention("joint", 1)},
        notes="queries are image tokens; keys are image tokens, then text and image-prompt tokens",
        image="first",
    ),
    Family(
        name="Stable Cascade decoder",
        pipeline="StableCascadeDecoderPipeline",
        build=stable_cascade_decoder,
        inputs=stable_cascade_decoder_inputs,
        attention={
            "down_blocks.1.*.attention": Attention("joint", 4),
            "up_blocks.0.*.attention": Attention("joint", 4),
        },
        notes="a layer of an up block has one call for each repeat of its block in a forward pass",
        image="first",
    ),
    Family(
        name="unconditional UNet",
        pipeline="DDPMPipeline",
        build=unconditional,
        inputs=unconditional_inputs,
        attention={
            "down_blocks.1.attentions.?": Attention("self", 2),
            "down_blocks.2.attentions.?": Attention("self", 4),
            "mid_block.attentions.?": Attention("self", 4),
            "up_blocks.0.attentions.?": Attention("self", 4),
            "up_blocks.1.attentions.?": Attention("self", 2),
        },
    ),
]
