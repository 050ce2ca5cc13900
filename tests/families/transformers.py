"""Image transformers, most of them with joint attention of text and image tokens."""

from typing import Any

import torch
from diffusers import (
    ChromaTransformer2DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    Lumina2Transformer2DModel,
    OmniGenTransformer2DModel,
    PRXTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator
from torch import Tensor, nn

from .family import Attention, Family

WORDS = 7
TEXT_WIDTH = 16
CHANNELS = 4


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def latents(height: int, width: int) -> Tensor:
    return randn(2, CHANNELS, height, width)


def packed(height: int, width: int) -> Tensor:
    """Return latents with 2 x 2 pixels packed into one token."""
    pixels = latents(height, width).unflatten(3, (width // 2, 2)).unflatten(2, (height // 2, 2))
    return pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def text() -> Tensor:
    return randn(2, WORDS, TEXT_WIDTH)


def mask(padding: int = 3) -> Tensor:
    """Return the mask of a prompt without padding and one with padding."""
    padded = torch.ones(2, WORDS, dtype=torch.long)
    padded[1, WORDS - padding :] = 0
    return padded


def timestep(time: float = 500.0) -> Tensor:
    return torch.tensor([time, time])


def image_ids(height: int, width: int) -> Tensor:
    """Return the row and the column of every packed token."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(height // 2), torch.arange(width // 2)).float()


def build_flux() -> nn.Module:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def flux_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": packed(height, width),
        "timestep": timestep(0.5),
        "guidance": torch.tensor([3.5, 3.5]),
        "pooled_projections": randn(2, TEXT_WIDTH),
        "encoder_hidden_states": text(),
        "txt_ids": torch.zeros(WORDS, 3),
        "img_ids": image_ids(height, width),
        "joint_attention_kwargs": {},
        "return_dict": False,
    }


def build_flux2() -> nn.Module:
    torch.manual_seed(0)
    return Flux2Transformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    ).eval()


def flux2_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    one = torch.arange(1)
    text_ids = torch.cartesian_prod(one, one, one, torch.arange(WORDS))
    latent_ids = torch.cartesian_prod(one, torch.arange(height // 2), torch.arange(width // 2), one)
    return {
        "hidden_states": packed(height, width),
        "timestep": timestep(0.5),
        "guidance": torch.tensor([4.0, 4.0]),
        "encoder_hidden_states": text(),
        "txt_ids": text_ids.expand(2, -1, -1),
        "img_ids": latent_ids.expand(2, -1, -1),
        "joint_attention_kwargs": None,
        "return_dict": False,
    }


def build_chroma() -> nn.Module:
    torch.manual_seed(0)
    return ChromaTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    ).eval()


def chroma_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    """Return inputs whose mask includes the first token of the padding, as in the pipeline."""
    hidden_states = packed(height, width)
    return {
        "hidden_states": hidden_states,
        "timestep": timestep(0.5),
        "encoder_hidden_states": text(),
        "txt_ids": torch.zeros(WORDS, 3),
        "img_ids": image_ids(height, width),
        "attention_mask": torch.cat([mask(padding=2).float(), torch.ones(hidden_states.shape[:2])], dim=1),
        "joint_attention_kwargs": {},
        "return_dict": False,
    }


def build_lumina2() -> nn.Module:
    torch.manual_seed(0)
    return Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=CHANNELS,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(32, 32, 32),
        cap_feat_dim=TEXT_WIDTH,
    ).eval()


def lumina2_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(height, width),
        "timestep": timestep(0.5),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "return_dict": False,
        "attention_kwargs": None,
    }


def build_sana() -> nn.Module:
    torch.manual_seed(0)
    return SanaTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
    ).eval()


def sana_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(height, width),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "timestep": timestep(),
        "return_dict": False,
        "attention_kwargs": None,
    }


COGVIEW = {
    "in_channels": CHANNELS,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "out_channels": CHANNELS,
    "text_embed_dim": TEXT_WIDTH,
    "time_embed_dim": 16,
    "condition_dim": 8,
    "pos_embed_max_size": 16,
    "sample_size": 8,
}


def build_cogview3() -> nn.Module:
    torch.manual_seed(0)
    return CogView3PlusTransformer2DModel(**COGVIEW).eval()


def cogview3_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    pixels = torch.tensor([[8.0 * height, 8.0 * width]]).repeat(2, 1)
    return {
        "hidden_states": latents(height, width),
        "encoder_hidden_states": text(),
        "timestep": timestep(),
        "original_size": pixels,
        "target_size": pixels,
        "crop_coords": torch.zeros(2, 2),
        "return_dict": False,
    }


def build_cogview4() -> nn.Module:
    torch.manual_seed(0)
    return CogView4Transformer2DModel(**COGVIEW, rope_axes_dim=(16, 16)).eval()


def cogview4_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {**cogview3_inputs(model, height, width), "attention_kwargs": None}


def build_z_image() -> nn.Module:
    torch.manual_seed(0)
    return ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 32, 32],
    ).eval()


def z_image_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    """Return inputs with prompts of 70 and 40 words, which the model pads to 96 and 64 tokens."""
    return {
        "x": list(latents(height, width).unsqueeze(2)),
        "t": timestep(0.5),
        "cap_feats": [randn(70, TEXT_WIDTH), randn(40, TEXT_WIDTH)],
        "joint_attention_kwargs": None,
        "return_dict": False,
    }


def build_qwen_image() -> nn.Module:
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def qwen_image_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": packed(height, width),
        "timestep": timestep(0.5),
        "guidance": None,
        "encoder_hidden_states_mask": mask(),
        "encoder_hidden_states": text(),
        "img_shapes": [[(1, height // 2, width // 2)]] * 2,
        "attention_kwargs": {},
        "return_dict": False,
    }


def build_prx() -> nn.Module:
    """Return a model with random attention gates: their default is zero."""
    torch.manual_seed(0)
    model = PRXTransformer2DModel(
        in_channels=CHANNELS, context_in_dim=TEXT_WIDTH, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]
    )
    for block in model.blocks:
        nn.init.normal_(block.modulation.lin.weight, std=0.1)
    return model.eval()


def prx_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(height, width),
        "timestep": timestep(0.5),
        "encoder_hidden_states": text(),
        "attention_mask": mask().bool(),
        "return_dict": False,
    }


def build_omnigen() -> nn.Module:
    torch.manual_seed(0)
    return OmniGenTransformer2DModel(
        in_channels=CHANNELS,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        num_layers=2,
        pad_token_id=0,
        vocab_size=32,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
        pos_embed_max_size=16,
        time_step_dim=16,
    ).eval()


def omnigen_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    prompts = [list(range(1, 1 + words)) for words in (WORDS, WORDS - 3)]
    prompts = [{"input_ids": ids, "pixel_values": None, "image_sizes": None} for ids in prompts]
    collator = OmniGenCollator(pad_token_id=0, hidden_size=32)
    ids, positions, attention_mask, _, _, image_sizes = collator.process_mllm_input(
        prompts, [(8 * height, 8 * width)] * 2
    )
    return {
        "hidden_states": latents(height, width),
        "timestep": timestep(0.5),
        "input_ids": ids,
        "input_img_latents": [],
        "input_image_sizes": image_sizes,
        "attention_mask": attention_mask,
        "position_ids": positions,
        "return_dict": False,
    }


def build_hidream() -> nn.Module:
    torch.manual_seed(0)
    return HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[TEXT_WIDTH, TEXT_WIDTH],
        text_emb_dim=TEXT_WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(16, 16),
        llama_layers=[0, 1, 2, 2],
    ).eval()


def hidream_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(height, width),
        "timesteps": timestep(),
        "encoder_hidden_states_t5": randn(2, 5, TEXT_WIDTH),
        "encoder_hidden_states_llama3": randn(3, 2, WORDS, TEXT_WIDTH),
        "pooled_embeds": randn(2, TEXT_WIDTH),
        "attention_kwargs": None,
        "return_dict": False,
    }


JOINT = Attention("joint", 2)
REFINED = {"noise_refiner.*": Attention("self", 2), "context_refiner.*": Attention("text", 0), "layers.*": JOINT}
TWO_STREAMS = {"transformer_blocks.*.attn": JOINT, "single_transformer_blocks.*.attn": JOINT}

FAMILIES: list[Family] = [
    Family("Flux", "FluxPipeline", build_flux, flux_inputs, TWO_STREAMS, image="last"),
    Family("Flux.2", "Flux2Pipeline", build_flux2, flux2_inputs, TWO_STREAMS, image="last"),
    Family(
        "Chroma",
        "ChromaPipeline",
        build_chroma,
        chroma_inputs,
        TWO_STREAMS,
        image="last",
        notes="diffusers adds the padding mask to the logits as 0 and 1, so padding is not excluded",
    ),
    Family(
        "Lumina 2",
        "Lumina2Pipeline",
        build_lumina2,
        lumina2_inputs,
        {f"{blocks}.attn": attention for blocks, attention in REFINED.items()},
        image="unknown",
        notes="prompts of different lengths shift the image tokens, so their position is unknown",
    ),
    Family(
        "Sana",
        "SanaPipeline",
        build_sana,
        sana_inputs,
        {"transformer_blocks.*.attn2": Attention("cross", 1)},
        linear=("transformer_blocks.*.attn1",),
    ),
    Family(
        "CogView3+",
        "CogView3PlusPipeline",
        build_cogview3,
        cogview3_inputs,
        {"transformer_blocks.*.attn1": JOINT},
        image="last",
    ),
    Family(
        "CogView4",
        "CogView4Pipeline",
        build_cogview4,
        cogview4_inputs,
        {"transformer_blocks.*.attn1": JOINT},
        image="last",
    ),
    Family(
        "Z-Image",
        "ZImagePipeline",
        build_z_image,
        z_image_inputs,
        {f"{blocks}.attention": attention for blocks, attention in REFINED.items()},
        image="first",
        notes="image and text are each padded to a multiple of 32, and the padding is not masked; with image padding, "
        "the refiner is classified as `joint`",
        sizes=((16, 16), (8, 16), (16, 32)),
    ),
    Family(
        "Qwen-Image",
        "QwenImagePipeline",
        build_qwen_image,
        qwen_image_inputs,
        {"transformer_blocks.*.attn": JOINT},
        image="last",
    ),
    Family(
        "PRX",
        "PRXPipeline",
        build_prx,
        prx_inputs,
        {"blocks.*.attention": JOINT},
        image="last",
        notes="only image tokens are queries; keys are text and image tokens",
    ),
    Family("OmniGen", "OmniGenPipeline", build_omnigen, omnigen_inputs, {"layers.*.self_attn": JOINT}, image="last"),
    Family(
        "HiDream",
        "HiDreamImagePipeline",
        build_hidream,
        hidream_inputs,
        {"double_stream_blocks.*.block.attn1": JOINT, "single_stream_blocks.*.block.attn1": JOINT},
        image="first",
        notes="an image that is not square is padded to the tokens of `max_resolution`, and the padding is not masked",
    ),
]
