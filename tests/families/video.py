"""Video models: UNets with temporal layers and transformers over frames x height x width."""

from typing import Any

import torch
from diffusers import (
    AllegroTransformer3DModel,
    CogVideoXTransformer3DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_rotary_pos_embed_allegro
from torch import Tensor, nn

from .family import Attention, Axes, Family

FRAMES = 3
WORDS = 7
TEXT_WIDTH = 16


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def text() -> Tensor:
    return randn(2, WORDS, TEXT_WIDTH)


def mask(tokens: int = WORDS, padding: int = 3) -> Tensor:
    """Return the mask of a prompt without padding and one with padding."""
    padded = torch.ones(2, tokens, dtype=torch.long)
    padded[1, tokens - padding :] = 0
    return padded


def timestep() -> Tensor:
    return torch.tensor([500.0, 500.0])


def self_and_cross(blocks: str, stride: int, axes: Axes = "spatial") -> dict[str, Attention]:
    """Return the attention of blocks in which `attn1` is self-attention and `attn2` is cross-attention."""
    return {
        f"{blocks}.*.attn1": Attention("self", stride, axes),
        f"{blocks}.*.attn2": Attention("cross", stride, axes),
    }


SPATIAL_LEVELS = {"down_blocks.0": 1, "down_blocks.1": 2, "mid_block": 4, "up_blocks.1": 2, "up_blocks.2": 1}
ALL_LEVELS = {**SPATIAL_LEVELS, "down_blocks.2": 4, "up_blocks.0": 4}


def build_animatediff() -> nn.Module:
    torch.manual_seed(0)
    return UNetMotionModel(
        sample_size=8,
        block_out_channels=(16, 16, 32),
        down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
    ).eval()


def animatediff_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "sample": randn(2, 4, FRAMES, height, width),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": text().repeat_interleave(FRAMES, dim=0),
        "cross_attention_kwargs": None,
        "added_cond_kwargs": None,
        "return_dict": False,
    }


def animatediff_attention() -> dict[str, Attention]:
    layers: dict[str, Attention] = {}
    for block, stride in SPATIAL_LEVELS.items():
        layers |= self_and_cross(f"{block}.attentions", stride)
    for block, stride in ALL_LEVELS.items():
        layers[f"{block}.motion_modules.*.attn[12]"] = Attention("self", stride, "temporal")
    return layers


def build_stable_video_diffusion() -> nn.Module:
    torch.manual_seed(0)
    return UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        down_block_types=(
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=(2, 2, 2),
        num_frames=FRAMES,
    ).eval()


def stable_video_diffusion_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "sample": randn(2, FRAMES, 8, height, width),
        "timestep": torch.tensor(1.6),
        "encoder_hidden_states": randn(2, 1, TEXT_WIDTH),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]] * 2),
        "return_dict": False,
    }


def stable_video_diffusion_attention() -> dict[str, Attention]:
    layers: dict[str, Attention] = {}
    for block, stride in SPATIAL_LEVELS.items():
        layers |= self_and_cross(f"{block}.attentions.*.transformer_blocks", stride)
        layers |= self_and_cross(f"{block}.attentions.*.temporal_transformer_blocks", stride, "temporal")
    return layers


def build_cogvideox() -> nn.Module:
    torch.manual_seed(0)
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=4 * (FRAMES - 1) + 1,
        patch_size=2,
        max_text_seq_length=WORDS,
        use_rotary_positional_embeddings=True,
    ).eval()


def cogvideox_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    grid = (height // 2, width // 2)
    return {
        "hidden_states": randn(2, FRAMES, 4, height, width),
        "encoder_hidden_states": text(),
        "timestep": timestep(),
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), grid), grid, FRAMES),
        "attention_kwargs": None,
        "return_dict": False,
    }


def build_wan() -> nn.Module:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()


def wan_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": randn(2, 4, FRAMES, height, width),
        "timestep": timestep(),
        "encoder_hidden_states": text() * mask().unsqueeze(-1),
        "attention_kwargs": None,
        "return_dict": False,
    }


def build_ltx() -> nn.Module:
    torch.manual_seed(0)
    return LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
    ).eval()


def ltx_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": randn(2, FRAMES * height * width, 4),
        "encoder_hidden_states": text(),
        "timestep": timestep(),
        "encoder_attention_mask": mask().bool(),
        "num_frames": FRAMES,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
        "attention_kwargs": None,
        "return_dict": False,
    }


def build_hunyuan_video() -> nn.Module:
    torch.manual_seed(0)
    return HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    ).eval()


def hunyuan_video_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": randn(2, 4, FRAMES, height, width),
        "timestep": timestep(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "pooled_projections": randn(2, 8),
        "guidance": torch.tensor([6000.0, 6000.0]),
        "attention_kwargs": None,
        "return_dict": False,
    }


def build_hunyuan_video_15() -> nn.Module:
    torch.manual_seed(0)
    return HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=2,
        text_embed_dim=TEXT_WIDTH,
        text_embed_2_dim=24,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
        target_size=128,
        task_type="t2v",
    ).eval()


def hunyuan_video_15_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    condition_and_mask = torch.zeros(2, 5, FRAMES, height, width)
    return {
        "hidden_states": torch.cat([randn(2, 4, FRAMES, height, width), condition_and_mask], dim=1),
        "image_embeds": torch.zeros(2, 11, 8),
        "timestep": timestep(),
        "attention_kwargs": None,
        "return_dict": False,
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "encoder_hidden_states_2": randn(2, 5, 24),
        "encoder_attention_mask_2": mask(5, padding=2),
    }


def build_mochi() -> nn.Module:
    torch.manual_seed(0)
    model = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=64,
        time_embed_dim=16,
        max_sequence_length=WORDS,
    )
    nn.init.normal_(model.pos_frequencies, std=0.1)
    return model.eval()


def mochi_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": randn(2, 4, FRAMES, height, width),
        "encoder_hidden_states": randn(2, WORDS, 64),
        "timestep": timestep(),
        "encoder_attention_mask": mask().bool(),
        "attention_kwargs": None,
        "return_dict": False,
    }


def build_allegro() -> nn.Module:
    torch.manual_seed(0)
    return AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=48,
        sample_height=8,
        sample_width=8,
        sample_frames=FRAMES,
        caption_channels=TEXT_WIDTH,
    ).eval()


def allegro_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    grid = (height // 2, width // 2)
    *frequencies, frames, rows, columns = get_3d_rotary_pos_embed_allegro(24, ((0, 0), grid), grid, FRAMES, (2.2, 2, 2))
    positions = torch.cartesian_prod(frames.long(), rows.long(), columns.long()).T.reshape(3, 1, -1)
    return {
        "hidden_states": randn(2, 4, FRAMES, height, width),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "timestep": timestep(),
        "image_rotary_emb": (tuple(frequencies), tuple(positions)),
        "return_dict": False,
    }


FAMILIES: list[Family] = [
    Family(
        name="AnimateDiff",
        pipeline="AnimateDiffPipeline",
        build=build_animatediff,
        inputs=animatediff_inputs,
        attention=animatediff_attention(),
        frames=FRAMES,
    ),
    Family(
        name="Stable Video Diffusion",
        pipeline="StableVideoDiffusionPipeline",
        build=build_stable_video_diffusion,
        inputs=stable_video_diffusion_inputs,
        attention=stable_video_diffusion_attention(),
        frames=FRAMES,
        notes="cross-attention has one key, the image embedding, so its entropy is zero",
    ),
    Family(
        name="CogVideoX",
        pipeline="CogVideoXPipeline",
        build=build_cogvideox,
        inputs=cogvideox_inputs,
        attention={"transformer_blocks.*.attn1": Attention("joint", 2, "spatio-temporal")},
        frames=FRAMES,
        image="last",
    ),
    Family(
        name="Wan",
        pipeline="WanPipeline",
        build=build_wan,
        inputs=wan_inputs,
        attention=self_and_cross("blocks", 2, "spatio-temporal"),
        frames=FRAMES,
    ),
    Family(
        name="LTX-Video",
        pipeline="LTXPipeline",
        build=build_ltx,
        inputs=ltx_inputs,
        attention=self_and_cross("transformer_blocks", 1, "spatio-temporal"),
        frames=FRAMES,
    ),
    Family(
        name="HunyuanVideo",
        pipeline="HunyuanVideoPipeline",
        build=build_hunyuan_video,
        inputs=hunyuan_video_inputs,
        attention={
            "context_embedder.*.attn": Attention("text", 0),
            "transformer_blocks.*.attn": Attention("joint", 2, "spatio-temporal"),
            "single_transformer_blocks.*.attn": Attention("joint", 2, "spatio-temporal"),
        },
        frames=FRAMES,
        image="first",
    ),
    Family(
        name="HunyuanVideo 1.5",
        pipeline="HunyuanVideo15Pipeline",
        build=build_hunyuan_video_15,
        inputs=hunyuan_video_15_inputs,
        attention={
            "context_embedder.*.attn": Attention("text", 0),
            "transformer_blocks.*.attn": Attention("joint", 1, "spatio-temporal"),
        },
        frames=FRAMES,
        image="first",
    ),
    Family(
        name="Mochi",
        pipeline="MochiPipeline",
        build=build_mochi,
        inputs=mochi_inputs,
        attention={
            "time_embed.pooler": Attention("text", 0),
            "transformer_blocks.*.attn1": Attention("joint", 2, "spatio-temporal"),
        },
        frames=FRAMES,
        notes="one call for each prompt of the batch, without the padding",
        image="first",
    ),
    Family(
        name="Allegro",
        pipeline="AllegroPipeline",
        build=build_allegro,
        inputs=allegro_inputs,
        attention=self_and_cross("transformer_blocks", 2, "spatio-temporal"),
        frames=FRAMES,
    ),
]
