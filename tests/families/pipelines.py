"""Small complete pipelines with random weights, which tests save to and load from disk."""

import tempfile
from collections.abc import Callable

import torch
from diffusers import (
    AllegroPipeline,
    AnimateDiffPipeline,
    AuraFlowPipeline,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLQwenImage,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    ChromaPipeline,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogView3PlusPipeline,
    CogView4Pipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DiffusionPipeline,
    DiTPipeline,
    EulerDiscreteScheduler,
    Flux2Pipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HunyuanDiTPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideoPipeline,
    IFPipeline,
    KolorsPipeline,
    LTXPipeline,
    Lumina2Pipeline,
    LuminaPipeline,
    MochiPipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    SanaPipeline,
    SD3Transformer2DModel,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    WanPipeline,
    ZImagePipeline,
)
from diffusers import (
    FlowMatchEulerDiscreteScheduler as Flow,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from sentencepiece import SentencePieceTrainer
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaModel,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from . import FAMILIES
from .components import (
    LANGUAGE_MODEL,
    TEXT,
    TEXT_WIDTH,
    TINY,
    TOKENIZER,
    autoencoder,
    chatting,
    clip,
    decoder_only,
    deep_autoencoder,
    qwen_text,
    sides,
    t5,
    umt5,
)

CLASSES = 1000
"""Classes of DiT; its pipeline uses the next number for the empty class."""


SENTENCEPIECE = tempfile.TemporaryDirectory()
"""Folder of the model file that Kolors' tokenizer copies when it is saved."""

Builder = Callable[[nn.Module], DiffusionPipeline]


def stable_diffusion_xl() -> DiffusionPipeline:
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), cross_attention_dim=2 * TEXT_WIDTH,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        **TEXT, vae=autoencoder(4), text_encoder=clip(TEXT_WIDTH), text_encoder_2=clip(TEXT_WIDTH, TEXT_WIDTH),
        tokenizer_2=TOKENIZER, unet=unet, scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3() -> DiffusionPipeline:
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * TEXT_WIDTH, caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT_WIDTH, pos_embed_max_size=32,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=Flow(), vae=autoencoder(4),
        text_encoder=clip(TEXT_WIDTH, TEXT_WIDTH), tokenizer=TOKENIZER,
        text_encoder_2=clip(TEXT_WIDTH, TEXT_WIDTH), tokenizer_2=TOKENIZER,
        text_encoder_3=t5(2 * TEXT_WIDTH), tokenizer_3=TOKENIZER,
    )  # fmt: skip


def flux() -> DiffusionPipeline:
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=TEXT_WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return FluxPipeline(
        **TEXT, scheduler=Flow(), vae=autoencoder(4), text_encoder=clip(TEXT_WIDTH),
        text_encoder_2=t5(TEXT_WIDTH), tokenizer_2=TOKENIZER, transformer=transformer,
    )  # fmt: skip


def of_family(name: str) -> nn.Module:
    """Return the denoiser of a family."""
    return next(family for family in FAMILIES if family.name == name).build()


def by_family(name: str) -> DiffusionPipeline:
    """Return a pipeline with the denoiser of a family, adapted to the prompt length of the pipeline."""
    return WHOLE[name](of_family(name))


def altered(model: nn.Module, **changes: object) -> nn.Module:
    """Return a denoiser with a changed configuration."""
    return type(model).from_config({**model.config, **changes})


def kolors(unet: nn.Module) -> DiffusionPipeline:
    """Return Kolors, with a sentencepiece tokenizer and its text encoder, whose weights must be initialised here."""
    width = unet.config.encoder_hid_dim
    config = ChatGLMConfig(
        num_layers=2, padded_vocab_size=64, hidden_size=width, ffn_hidden_size=16, kv_channels=8,
        num_attention_heads=width // 8, multi_query_attention=True, original_rope=True, use_cache=True,
    )  # fmt: skip
    file = f"{SENTENCEPIECE.name}/tokenizer"
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a red apple", "flat pizza"] * 20), model_prefix=file, vocab_size=22, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    tokenizer = ChatGLMTokenizer(vocab_file=f"{file}.model", padding_side="left")
    text_encoder = ChatGLMModel(config)
    for parameter in text_encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    ids = 6 * unet.config.addition_time_embed_dim
    unet = altered(unet, projection_class_embeddings_input_dim=ids + width)
    return KolorsPipeline(
        vae=autoencoder(4), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip


def deepfloyd_if(unet: nn.Module) -> DiffusionPipeline:
    return IFPipeline(
        **TEXT, text_encoder=t5(unet.config.encoder_hid_dim), unet=unet, scheduler=DDPMScheduler(), safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def hunyuan_dit(transformer: nn.Module) -> DiffusionPipeline:
    """Return HunyuanDiT, which needs three halvings and these prompt lengths."""
    config = transformer.config
    bert = BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=config.cross_attention_dim, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=77,
    )  # fmt: skip
    return HunyuanDiTPipeline(
        **TEXT, vae=autoencoder(4, halvings=3), text_encoder=BertModel(bert),
        text_encoder_2=t5(config.cross_attention_dim_t5), tokenizer_2=TOKENIZER, scheduler=DDPMScheduler(),
        transformer=altered(transformer, text_len=77, text_len_t5=256), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_35(transformer: nn.Module) -> DiffusionPipeline:
    half = transformer.config.pooled_projection_dim // 2
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=Flow(), vae=autoencoder(4),
        text_encoder=clip(half, half), tokenizer=TOKENIZER, text_encoder_2=clip(half, half), tokenizer_2=TOKENIZER,
        text_encoder_3=t5(transformer.config.joint_attention_dim), tokenizer_3=TOKENIZER,
    )  # fmt: skip


def flux_2(transformer: nn.Module) -> DiffusionPipeline:
    """Return Flux.2, whose prompt embedding concatenates three layers of the language model."""
    text = {**LANGUAGE_MODEL, "model_type": "mistral", "hidden_size": 16, "num_hidden_layers": 31}
    vision = {"model_type": "pixtral", **TINY, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=3)
    return Flux2Pipeline(
        transformer=altered(transformer, joint_attention_dim=3 * 16), scheduler=Flow(),
        vae=AutoencoderKLFlux2(**sides(3), block_out_channels=(4, 4, 4), norm_num_groups=2, latent_channels=4),
        text_encoder=Mistral3ForConditionalGeneration(config), tokenizer=chatting(),
    )  # fmt: skip


def qwen_image(transformer: nn.Module) -> DiffusionPipeline:
    vision = {"depth": 1, **TINY, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=qwen_text(2), vision_config=vision, image_token_id=4, video_token_id=5)
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return QwenImagePipeline(
        **TEXT, text_encoder=Qwen2_5_VLForConditionalGeneration(config), vae=vae, transformer=transformer,
        scheduler=Flow(),
    )  # fmt: skip


def hidream(transformer: nn.Module) -> DiffusionPipeline:
    half = transformer.config.text_emb_dim // 2
    return HiDreamImagePipeline(
        scheduler=Flow(), vae=autoencoder(4), text_encoder=clip(half, half, 128),
        tokenizer=TOKENIZER, text_encoder_2=clip(half, half, 128), tokenizer_2=TOKENIZER, text_encoder_3=t5(16),
        tokenizer_3=TOKENIZER, text_encoder_4=decoder_only(LlamaConfig, LlamaForCausalLM, 16), tokenizer_4=TOKENIZER,
        transformer=altered(transformer, max_resolution=(128, 128)),
    )  # fmt: skip


def stable_cascade_prior(prior: nn.Module) -> DiffusionPipeline:
    text = clip(prior.config.clip_text_in_channels, prior.config.clip_text_pooled_in_channels)
    return StableCascadePriorPipeline(
        **TEXT, text_encoder=text, prior=prior, scheduler=DDPMWuerstchenScheduler(), resolution_multiple=32
    )


def stable_cascade_decoder(decoder: nn.Module) -> DiffusionPipeline:
    width = decoder.config.clip_text_pooled_in_channels
    vqgan = PaellaVQModel(levels=1, bottleneck_blocks=1, embed_dim=4, latent_channels=4, num_vq_embeddings=8)
    return StableCascadeDecoderPipeline(
        **TEXT, decoder=decoder, text_encoder=clip(width, width), scheduler=DDPMWuerstchenScheduler(), vqgan=vqgan
    )


def animatediff(unet: nn.Module) -> DiffusionPipeline:
    return AnimateDiffPipeline(
        **TEXT, vae=autoencoder(4), text_encoder=clip(unet.config.cross_attention_dim), motion_adapter=None,
        unet=altered(unet, motion_max_seq_length=32), scheduler=DDIMScheduler(),
    )  # fmt: skip


def stable_video_diffusion(unet: nn.Module) -> DiffusionPipeline:
    config = CLIPVisionConfig(
        **TINY, projection_dim=unet.config.cross_attention_dim, num_hidden_layers=1, num_attention_heads=2,
        image_size=224, patch_size=32,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3, latent_channels=4
    )
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", sigma_min=0.002, sigma_max=700.0
    )
    return StableVideoDiffusionPipeline(
        vae=vae, image_encoder=CLIPVisionModelWithProjection(config), unet=unet, scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(),
    )  # fmt: skip


def hunyuan_video(transformer: nn.Module) -> DiffusionPipeline:
    config = transformer.config
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return HunyuanVideoPipeline(
        **TEXT, text_encoder=decoder_only(LlamaConfig, LlamaModel, config.text_embed_dim), transformer=transformer,
        vae=vae, scheduler=Flow(), text_encoder_2=clip(config.pooled_projection_dim),
        tokenizer_2=TOKENIZER,
    )  # fmt: skip


def hunyuan_video_15(transformer: nn.Module) -> DiffusionPipeline:
    text = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**qwen_text(3)))
    letters = T5Config(vocab_size=400, d_model=transformer.config.text_embed_2_dim, d_kv=8, d_ff=16, num_layers=1)
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(32,) * 5, layers_per_block=1)
    return HunyuanVideo15Pipeline(
        text_encoder=text, tokenizer=chatting(), transformer=transformer, vae=vae, guider=ClassifierFreeGuidance(),
        text_encoder_2=T5EncoderModel(letters), tokenizer_2=ByT5Tokenizer(), scheduler=Flow(),
    )  # fmt: skip


def cogvideox(transformer: nn.Module) -> DiffusionPipeline:
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    return CogVideoXPipeline(
        **TEXT, text_encoder=t5(16), vae=vae, transformer=transformer, scheduler=CogVideoXDDIMScheduler()
    )


def ltx_video(transformer: nn.Module) -> DiffusionPipeline:
    channels, layers = (8, 8, 8, 8), (1, 1, 1, 1, 1)
    vae = AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=channels, decoder_block_out_channels=channels, layers_per_block=layers,
        decoder_layers_per_block=layers,
    )  # fmt: skip
    return LTXPipeline(**TEXT, text_encoder=t5(16), vae=vae, transformer=transformer, scheduler=Flow())


def wan(transformer: nn.Module) -> DiffusionPipeline:
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return WanPipeline(
        **TEXT, text_encoder=umt5(16), vae=vae, scheduler=Flow(), transformer=altered(transformer, rope_max_seq_len=256)
    )


def allegro(transformer: nn.Module) -> DiffusionPipeline:
    vae = AutoencoderKLAllegro(
        latent_channels=4, norm_num_groups=2, block_out_channels=(8, 8, 8, 8), layers_per_block=1
    )
    return AllegroPipeline(**TEXT, text_encoder=t5(16), vae=vae, transformer=transformer, scheduler=DDIMScheduler())


def mochi(transformer: nn.Module) -> DiffusionPipeline:
    channels = transformer.config.in_channels
    vae = AutoencoderKLMochi(
        latent_channels=channels, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5, latents_mean=[0.0] * channels, latents_std=[1.0] * channels,
    )  # fmt: skip
    return MochiPipeline(
        **TEXT, text_encoder=t5(transformer.config.text_embed_dim), vae=vae, transformer=transformer,
        scheduler=Flow(),
    )  # fmt: skip


def plain(kind: type[DiffusionPipeline], scheduler: type, **parts: Callable[[], object]) -> Builder:
    """Return a pipeline with one text encoder and an autoencoder that halves twice."""

    def build(transformer: nn.Module) -> DiffusionPipeline:
        made = {"vae": autoencoder(4), **{name: part() for name, part in parts.items()}}
        return kind(transformer=transformer, scheduler=scheduler(), **TEXT | made)

    return build


WHOLE: dict[str, Builder] = {
    "Kolors": kolors,
    "DeepFloyd IF": deepfloyd_if,
    "Stable Cascade prior": stable_cascade_prior,
    "unconditional UNet": lambda unet: DDPMPipeline(unet=unet, scheduler=DDPMScheduler()),
    "DiT": lambda transformer: DiTPipeline(
        transformer=altered(transformer, num_embeds_ada_norm=CLASSES), vae=autoencoder(4), scheduler=DDIMScheduler()
    ),
    "PixArt-Sigma": plain(PixArtSigmaPipeline, DDIMScheduler, text_encoder=lambda: t5(20)),
    "HunyuanDiT": hunyuan_dit,
    "Stable Diffusion 3.5": stable_diffusion_35,
    "AuraFlow": plain(AuraFlowPipeline, Flow, text_encoder=lambda: umt5(24)),
    "Lumina-Next": plain(LuminaPipeline, Flow, text_encoder=lambda: decoder_only(GemmaConfig, GemmaModel, 24)),
    "Flux.2": flux_2,
    "Chroma": plain(ChromaPipeline, Flow, text_encoder=lambda: t5(16)),
    "Lumina 2": lambda transformer: plain(
        Lumina2Pipeline, Flow, text_encoder=lambda: decoder_only(Gemma2Config, Gemma2Model, 16)
    )(altered(transformer, axes_lens=(300, 32, 32))),
    "Sana": plain(
        SanaPipeline,
        Flow,
        text_encoder=lambda: decoder_only(Gemma2Config, Gemma2Model, 16),
        vae=lambda: deep_autoencoder(),
    ),
    "CogView3+": plain(CogView3PlusPipeline, CogVideoXDDIMScheduler, text_encoder=lambda: t5(16)),
    "CogView4": plain(CogView4Pipeline, Flow, text_encoder=lambda: decoder_only(GlmConfig, GlmModel, 16)),
    "Z-Image": plain(
        ZImagePipeline,
        Flow,
        text_encoder=lambda: decoder_only(Qwen3Config, Qwen3Model, 16),
        tokenizer=lambda: chatting(),
    ),
    "Qwen-Image": qwen_image,
    "HiDream": hidream,
    "AnimateDiff": animatediff,
    "Stable Video Diffusion": stable_video_diffusion,
    "CogVideoX": cogvideox,
    "Wan": wan,
    "LTX-Video": ltx_video,
    "HunyuanVideo": hunyuan_video,
    "HunyuanVideo 1.5": hunyuan_video_15,
    "Mochi": mochi,
    "Allegro": allegro,
}


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "Stable Diffusion XL": stable_diffusion_xl,
    "Stable Diffusion 3": stable_diffusion_3,
    "Flux": flux,
}


def seeded(build: Callable[[], DiffusionPipeline]) -> DiffusionPipeline:
    """Build a pipeline with the same weights every time, in evaluation mode."""
    torch.manual_seed(0)
    pipeline = build()
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    return pipeline
