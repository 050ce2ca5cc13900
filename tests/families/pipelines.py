"""Whole pipelines, small and with random weights: each folder is what a user has on disk."""

import copy
from collections.abc import Callable

import torch
from diffusers import (
    AuraFlowPipeline,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    ChromaPipeline,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogView3PlusPipeline,
    CogView4Pipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LuminaPipeline,
    PixArtSigmaPipeline,
    SanaPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaModel,
    GlmConfig,
    GlmModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from entropy_probe.reference.train import build_tokenizer

from . import FAMILIES

TOKENIZER = build_tokenizer(["a red apple", "flat pizza"], 300)
TEXT_WIDTH = 32


def autoencoder(channels: int) -> AutoencoderKL:
    """Halves height and width twice."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return AutoencoderKL(
        **kinds, block_out_channels=(4, 4, 4), norm_num_groups=2, latent_channels=channels, shift_factor=0.0
    )


def clip(projection: bool) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(TOKENIZER), hidden_size=TEXT_WIDTH, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=TEXT_WIDTH, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5(width: int) -> T5EncoderModel:
    config = T5Config(vocab_size=len(TOKENIZER), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def stable_diffusion_xl() -> DiffusionPipeline:
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), cross_attention_dim=2 * TEXT_WIDTH,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=autoencoder(4), text_encoder=clip(False), text_encoder_2=clip(True), tokenizer=TOKENIZER,
        tokenizer_2=TOKENIZER, unet=unet, scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3() -> DiffusionPipeline:
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * TEXT_WIDTH, caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT_WIDTH, pos_embed_max_size=32,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(4),
        text_encoder=clip(True), tokenizer=TOKENIZER, text_encoder_2=clip(True), tokenizer_2=TOKENIZER,
        text_encoder_3=t5(2 * TEXT_WIDTH), tokenizer_3=TOKENIZER,
    )  # fmt: skip


def flux() -> DiffusionPipeline:
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=TEXT_WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(4), text_encoder=clip(False), tokenizer=TOKENIZER,
        text_encoder_2=t5(TEXT_WIDTH), tokenizer_2=TOKENIZER, transformer=transformer,
    )  # fmt: skip


def of_family(name: str) -> nn.Module:
    """The denoiser of the matrix."""
    return next(family for family in FAMILIES if family.name == name).build()


def umt5(width: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(vocab_size=len(TOKENIZER), d_model=width, d_kv=8, d_ff=32, num_layers=1))


def decoder_only(config: type, model: type, width: int) -> nn.Module:
    """A language model that serves as text encoder."""
    return model(
        config(
            vocab_size=len(TOKENIZER), hidden_size=width, intermediate_size=16, num_hidden_layers=3, head_dim=8,
            num_attention_heads=2, num_key_value_heads=1, pad_token_id=1, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def deep_autoencoder() -> AutoencoderDC:
    sides = {"block_types": "ResBlock", "block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1)}
    sides |= {"qkv_multiscales": ((), (), ())}
    return AutoencoderDC(
        latent_channels=4, decoder_norm_types="rms_norm", decoder_act_fns="silu",
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()},
    )  # fmt: skip


def by_family() -> dict[str, DiffusionPipeline]:
    """Pipelines around denoisers of the matrix, by the name of their family."""
    flow, image = FlowMatchEulerDiscreteScheduler, lambda: autoencoder(4)
    text = {"tokenizer": TOKENIZER}
    cog = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    channels, layers = (8, 8, 8, 8), (1, 1, 1, 1, 1)
    ltx = AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=channels, decoder_block_out_channels=channels, layers_per_block=layers,
        decoder_layers_per_block=layers,
    )  # fmt: skip
    made = {
        "unconditional UNet": (DDPMPipeline, {"scheduler": DDPMScheduler()}),
        "DiT": (DiTPipeline, {"vae": image(), "scheduler": DDIMScheduler()}),
        "PixArt-Sigma": (
            PixArtSigmaPipeline, {**text, "text_encoder": t5(20), "vae": image(), "scheduler": DDIMScheduler()},
        ),
        "AuraFlow": (AuraFlowPipeline, {**text, "text_encoder": umt5(24), "vae": image(), "scheduler": flow()}),
        "Lumina-Next": (
            LuminaPipeline,
            {**text, "text_encoder": decoder_only(GemmaConfig, GemmaModel, 24), "vae": image(), "scheduler": flow()},
        ),
        "Chroma": (ChromaPipeline, {**text, "text_encoder": t5(16), "vae": image(), "scheduler": flow()}),
        "Sana": (
            SanaPipeline,
            {
                **text, "text_encoder": decoder_only(Gemma2Config, Gemma2Model, 16), "vae": deep_autoencoder(),
                "scheduler": flow(),
            },
        ),
        "CogView3+": (
            CogView3PlusPipeline,
            {**text, "text_encoder": t5(16), "vae": image(), "scheduler": CogVideoXDDIMScheduler()},
        ),
        "CogView4": (
            CogView4Pipeline,
            {**text, "text_encoder": decoder_only(GlmConfig, GlmModel, 16), "vae": image(), "scheduler": flow()},
        ),
        "Z-Image": (
            ZImagePipeline,
            {
                "tokenizer": chatting(), "text_encoder": decoder_only(Qwen3Config, Qwen3Model, 16), "vae": image(),
                "scheduler": flow(),
            },
        ),
        "CogVideoX": (
            CogVideoXPipeline, {**text, "text_encoder": t5(16), "vae": cog, "scheduler": CogVideoXDDIMScheduler()},
        ),
        "LTX-Video": (LTXPipeline, {**text, "text_encoder": t5(16), "vae": ltx, "scheduler": flow()}),
    }  # fmt: skip
    denoiser = {"unconditional UNet": "unet"}
    return {
        name: kind(**{denoiser.get(name, "transformer"): of_family(name)}, **parts)
        for name, (kind, parts) in made.items()
    }


def chatting() -> PreTrainedTokenizerBase:
    """With a template for messages, as the tokenizers of language models have."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "{{ messages[0].content }}"
    return tokenizer


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "Stable Diffusion XL": stable_diffusion_xl,
    "Stable Diffusion 3": stable_diffusion_3,
    "Flux": flux,
}


def seeded(build: Callable[[], DiffusionPipeline]) -> DiffusionPipeline:
    """The same weights every time, without dropout."""
    torch.manual_seed(0)
    pipeline = build()
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    return pipeline
