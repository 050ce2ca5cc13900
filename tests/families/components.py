"""Small components of pipelines, with random weights: tokenizer, text encoders and autoencoders."""

import copy

from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from recipes.loop import learn_tokenizer

TOKENIZER = learn_tokenizer(["a red apple", "flat pizza"], 300)
TEXT_WIDTH = 32
TEXT = {"tokenizer": TOKENIZER}
TINY = {"hidden_size": 16, "intermediate_size": 16}
LANGUAGE_MODEL = {
    "vocab_size": len(TOKENIZER), "intermediate_size": 16, "head_dim": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def sides(levels: int) -> dict[str, tuple[str, ...]]:
    """Return the block types of an encoder and a decoder."""
    return {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}


def autoencoder(channels: int, halvings: int = 2) -> AutoencoderKL:
    """Return an autoencoder that halves height and width `halvings` times."""
    levels = halvings + 1
    return AutoencoderKL(
        **sides(levels), block_out_channels=(4,) * levels, norm_num_groups=2, latent_channels=channels, shift_factor=0.0
    )


def clip(width: int, projection: int | None = None, words: int = 77) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(TOKENIZER), hidden_size=width, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=words, projection_dim=projection, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5(width: int) -> T5EncoderModel:
    config = T5Config(vocab_size=len(TOKENIZER), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def umt5(width: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(vocab_size=len(TOKENIZER), d_model=width, d_kv=8, d_ff=32, num_layers=1))


def decoder_only(config: type, model: type, width: int) -> nn.Module:
    """Return a language model for use as a text encoder."""
    return model(config(**LANGUAGE_MODEL, hidden_size=width, num_hidden_layers=3))


def deep_autoencoder() -> AutoencoderDC:
    sides = {"block_types": "ResBlock", "block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1)}
    sides |= {"qkv_multiscales": ((), (), ())}
    return AutoencoderDC(
        latent_channels=4, decoder_norm_types="rms_norm", decoder_act_fns="silu",
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()},
    )  # fmt: skip


def qwen_text(layers: int) -> dict[str, object]:
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    return {**LANGUAGE_MODEL, "hidden_size": 16, "num_hidden_layers": layers, "rope_parameters": rotary}


def chatting() -> PreTrainedTokenizerBase:
    """Return a tokenizer with a template for chat messages."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    return tokenizer
