"""The first diffusion transformers, text to image: small random models of the real diffusers classes."""

from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    DiTTransformer2DModel,
    HunyuanDiT2DModel,
    LuminaNextDiT2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn

from .family import Attention, Family
from .unets import BATCH, TOKENS, latents, padding_mask, randn, steps


def pixart(additional_conditions: bool) -> nn.Module:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        sample_size=8,
        patch_size=2,
        caption_channels=20,
        use_additional_conditions=additional_conditions,
    ).eval()


def pixart_alpha() -> nn.Module:
    return pixart(additional_conditions=True)


def pixart_sigma() -> nn.Module:
    return pixart(additional_conditions=False)


def pixart_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        added["resolution"] = torch.tensor([[8.0 * height, 8.0 * width]] * BATCH)
        added["aspect_ratio"] = torch.tensor([[height / width]] * BATCH)
    return {
        "hidden_states": latents(model, height, width),
        "encoder_hidden_states": randn(BATCH, TOKENS, model.config.caption_channels, seed=2),
        "encoder_attention_mask": padding_mask(),
        "timestep": steps(500),
        "added_cond_kwargs": added,
        "return_dict": False,
    }


def dit() -> nn.Module:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()


def dit_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(model, height, width),
        "timestep": torch.tensor([500] * BATCH),
        "class_labels": torch.tensor([3, 10]),
        "return_dict": False,
    }


def hunyuan_dit() -> nn.Module:
    torch.manual_seed(0)
    return HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=24,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        text_len=TOKENS,
        text_len_t5=TOKENS - 1,
    ).eval()


def hunyuan_dit_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    config = model.config
    grid = (height // config.patch_size, width // config.patch_size)
    return {
        "hidden_states": latents(model, height, width),
        "timestep": steps(500.0),
        "encoder_hidden_states": randn(BATCH, config.text_len, config.cross_attention_dim, seed=2),
        "text_embedding_mask": padding_mask(config.text_len),
        "encoder_hidden_states_t5": randn(BATCH, config.text_len_t5, config.cross_attention_dim_t5, seed=3),
        "text_embedding_mask_t5": padding_mask(config.text_len_t5),
        "image_meta_size": torch.tensor([[8.0 * height, 8.0 * width] * 2 + [0.0, 0.0]] * BATCH),
        "style": torch.zeros(BATCH, dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed(config.attention_head_dim, ((0, 0), grid), grid),
        "return_dict": False,
    }


def sd3(**config: Any) -> nn.Module:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=20,
        pos_embed_max_size=16,
        **config,
    ).eval()


def sd35() -> nn.Module:
    return sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def sd3_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(model, height, width),
        "timestep": steps(500.0),
        "encoder_hidden_states": randn(BATCH, TOKENS, model.config.joint_attention_dim, seed=2),
        "pooled_projections": randn(BATCH, model.config.pooled_projection_dim, seed=3),
        "joint_attention_kwargs": None,
        "return_dict": False,
    }


def auraflow() -> nn.Module:
    torch.manual_seed(0)
    return AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pos_embed_max_size=16**2,
    ).eval()


def auraflow_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(model, height, width),
        "encoder_hidden_states": randn(BATCH, TOKENS, model.config.joint_attention_dim, seed=2),
        "timestep": steps(0.5),
        "attention_kwargs": None,
        "return_dict": False,
    }


def lumina_next() -> nn.Module:
    torch.manual_seed(0)
    model = LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=24,
    ).eval()
    with torch.no_grad():
        # diffusers creates it with torch.empty, so its values are undefined
        model.pad_token.zero_()
        # zero in a new model, which would switch off cross-attention
        for layer in model.layers:
            layer.gate.fill_(0.5)
    return model


def lumina_next_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    config = model.config
    rows, columns = height // config.patch_size, width // config.patch_size
    return {
        "hidden_states": latents(model, height, width),
        "timestep": steps(0.5),
        "encoder_hidden_states": randn(BATCH, TOKENS, config.cross_attention_dim, seed=2),
        "encoder_mask": padding_mask(),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(model.head_dim, rows, columns),
        "cross_attention_kwargs": {"base_sequence_length": (config.sample_size // config.patch_size) ** 2},
        "return_dict": False,
    }


FAMILIES: list[Family] = [
    Family(
        name="PixArt-alpha",
        pipeline="PixArtAlphaPipeline",
        build=pixart_alpha,
        inputs=pixart_inputs,
        attention={
            "transformer_blocks.*.attn1": Attention("self", 2),
            "transformer_blocks.*.attn2": Attention("cross", 2),
        },
    ),
    Family(
        name="PixArt-Sigma",
        pipeline="PixArtSigmaPipeline",
        build=pixart_sigma,
        inputs=pixart_inputs,
        attention={
            "transformer_blocks.*.attn1": Attention("self", 2),
            "transformer_blocks.*.attn2": Attention("cross", 2),
        },
    ),
    Family(
        name="DiT",
        pipeline="DiTPipeline",
        build=dit,
        inputs=dit_inputs,
        attention={"transformer_blocks.*.attn1": Attention("self", 2)},
        notes="square latents only",
        sizes=((8, 8), (16, 16)),
    ),
    Family(
        name="HunyuanDiT",
        pipeline="HunyuanDiTPipeline",
        build=hunyuan_dit,
        inputs=hunyuan_dit_inputs,
        attention={
            "blocks.*.attn1": Attention("self", 2),
            "blocks.*.attn2": Attention("cross", 2),
        },
        hidden=("time_extra_emb.pooler",),
        notes="padding is not masked: learned embeddings replace it",
    ),
    Family(
        name="Stable Diffusion 3",
        pipeline="StableDiffusion3Pipeline",
        build=sd3,
        inputs=sd3_inputs,
        attention={"transformer_blocks.*.attn": Attention("joint", 2)},
        image="first",
    ),
    Family(
        name="Stable Diffusion 3.5",
        pipeline="StableDiffusion3Pipeline",
        build=sd35,
        inputs=sd3_inputs,
        attention={
            "transformer_blocks.*.attn": Attention("joint", 2),
            "transformer_blocks.*.attn2": Attention("self", 2),
        },
        image="first",
    ),
    Family(
        name="AuraFlow",
        pipeline="AuraFlowPipeline",
        build=auraflow,
        inputs=auraflow_inputs,
        attention={
            "joint_transformer_blocks.*.attn": Attention("joint", 2),
            "single_transformer_blocks.*.attn": Attention("joint", 2),
        },
        notes="eight learned register tokens come before the text tokens, which come before the image tokens",
        image="last",
    ),
    Family(
        name="Lumina-Next",
        pipeline="LuminaPipeline",
        build=lumina_next,
        inputs=lumina_next_inputs,
        attention={"layers.*.attn1": Attention("self", 2), "layers.*.attn2": Attention("cross", 2)},
        notes="the pipeline already scales the logits of self-attention with the number of tokens",
    ),
]
