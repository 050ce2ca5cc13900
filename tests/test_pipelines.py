"""Load pipelines, list their sizes and layers, and identify them by their fingerprints."""

import inspect
import shutil

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderKLQwenImage,
    BriaPipeline,
    BriaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    StableCascadePriorPipeline,
    StableCascadeUNet,
)
from families.pipelines import autoencoder as small_autoencoder
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from entropy_probe.attention import Latents, capture, default_size
from entropy_probe.attention.latents import training_latents
from entropy_probe.errors import InputError
from entropy_probe.models import (
    check_size,
    fingerprint,
    format_size,
    layers,
    load,
    parse_size,
    sample_images,
    training_size,
    training_tokens,
)


def test_saved_folder_is_loaded(tiny_folder, tiny_pipeline):
    again = load(tiny_folder, device="cpu", dtype="float32")
    assert type(again).__name__ == "StableDiffusionPipeline"
    assert fingerprint(again) == fingerprint(tiny_pipeline)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_all_weights_have_the_requested_dtype(tiny_folder, dtype):
    loaded = load(tiny_folder, dtype=dtype, device="cpu")
    models = [loaded.unet, loaded.vae, loaded.text_encoder]
    assert {weight.dtype for model in models for weight in model.parameters()} == {getattr(torch, dtype)}


def without_sample_size(transformer, pipeline, autoencoder=None, **more):
    """Return a pipeline whose transformer has no training size in its configuration."""
    absent = [name for name in inspect.signature(pipeline).parameters if name.startswith(("text_enc", "tokenizer"))]
    return pipeline(
        transformer=transformer,
        vae=autoencoder or small_autoencoder(4),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(absent),
        **more,
    )


def flux(channels):
    return FluxTransformer2DModel(
        in_channels=channels, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def bria():
    transformer = BriaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[0, 8, 8],
    )  # fmt: skip
    return without_sample_size(transformer, BriaPipeline)


def prx():
    transformer = PRXTransformer2DModel(
        in_channels=4, patch_size=2, hidden_size=32, num_heads=2, depth=1, axes_dim=[8, 8], context_in_dim=32
    )
    return without_sample_size(transformer, PRXPipeline, default_sample_size=512)


def qwen():
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return without_sample_size(transformer, QwenImagePipeline, autoencoder)


# The autoencoders reduce the size by 4, Qwen's by 2. The default sizes come from the pipeline classes.
@pytest.mark.parametrize(
    ("build", "pixels", "side", "patch"),
    [
        (lambda: without_sample_size(flux(16), FluxPipeline), 512, 64, 1),
        (lambda: without_sample_size(flux(16), FluxKontextPipeline), 512, 64, 1),
        (lambda: without_sample_size(flux(32), FluxControlPipeline), 512, 64, 1),
        (lambda: without_sample_size(flux(16 + 16 + 256), FluxFillPipeline), 512, 64, 1),
        (bria, 512, 64, 1),
        (prx, 512, 128, 2),
        (qwen, 256, 64, 2),
    ],
)
def test_training_size_falls_back_to_the_default_size(build, pixels, side, patch):
    pipeline = build()
    assert training_size(pipeline) == (pixels, pixels)
    assert training_latents(pipeline.transformer, pipeline) == Latents(side, side, patch)


def test_training_size_uses_the_factor_of_the_autoencoder(tiny_pipeline):
    pipeline = without_sample_size(flux(16), FluxPipeline, tiny_pipeline.vae)
    assert training_latents(pipeline.transformer, pipeline) == Latents(64, 64)
    assert training_latents(pipeline.transformer) is None


def test_latents_without_an_autoencoder_have_the_factor_of_the_pipeline():
    prior = StableCascadeUNet(
        in_channels=4, out_channels=4, timestep_ratio_embedding_dim=8, patch_size=1, conditioning_dim=8,
        block_out_channels=(8, 8), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), down_blocks_repeat_mappers=(1, 1), up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(("SDCascadeResBlock",), ("SDCascadeResBlock",)), clip_text_in_channels=8,
        clip_text_pooled_in_channels=8, clip_image_in_channels=8,
    )  # fmt: skip
    pipeline = StableCascadePriorPipeline(tokenizer=None, text_encoder=None, prior=prior, scheduler=None)
    assert default_size(pipeline) == (1024, 1024)
    latents = training_latents(prior, pipeline)
    assert latents is not None
    assert (latents.height, latents.width) == (24, 24)  # one latent pixel per 42.67 pixels, as the pipeline declares


def test_fingerprint_changes_with_the_weights(tiny_folder, tiny_pipeline):
    other = load(tiny_folder, device="cpu")
    other.unet.conv_in.weight.data += 1
    assert fingerprint(other) != fingerprint(tiny_pipeline)


def test_fingerprint_ignores_how_the_model_was_loaded(tiny_pipeline):
    before, config = fingerprint(tiny_pipeline), tiny_pipeline.text_encoder.config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "transformers_version", "9.9.9")
        assert fingerprint(tiny_pipeline) == before
        patch.setattr(config, "hidden_act", "gelu")
        assert fingerprint(tiny_pipeline) != before


def test_load_rejects_invalid_arguments(tiny_folder, tmp_path):
    with pytest.raises(InputError, match=r"unknown model .* not a folder and not a hub id"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no model_index\.json.*save_pretrained"):
        load(tmp_path)
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_folder, pickled)
    weights = next((pickled / "unet").glob("*.safetensors"))
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(InputError, match=r"pickled weights.*can run code.*safe_serialization"):
        load(pickled)
    with pytest.raises(InputError, match="dtype must be auto, float32"):
        load(tiny_folder, dtype="int8")
    with pytest.raises(InputError, match="device 'tpu' is not available"):
        load(tiny_folder, device="tpu")


def test_training_size_and_tokens(tiny_pipeline):
    assert training_size(tiny_pipeline) == (64, 64)
    tokens = training_tokens(tiny_pipeline)
    assert set(tokens.values()) == {256, 64}
    assert all(name.endswith("attn1") for name in tokens)


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_layers_equal_the_layers_of_a_capture(tiny_pipeline, sample, size):
    with capture(tiny_pipeline) as captured:
        sample(size, steps=1)
    seen = captured.frame().drop_duplicates("layer")
    found = layers(tiny_pipeline, size)
    assert [layer.name for layer in found] == seen["layer"].tolist()
    assert [layer.key_tokens for layer in found] == seen["key_tokens"].tolist()
    assert [layer.grid is None for layer in found] == (seen["kind"] == "cross").tolist()


def test_check_size_rejects_sizes_that_cannot_be_sampled(tiny_pipeline):
    check_size(tiny_pipeline, (64, 96))
    with pytest.raises(InputError, match="multiples of 8 pixels, such as 64x96, got size 64x100"):
        check_size(tiny_pipeline, (64, 100))
    with pytest.raises(InputError, match="must be positive"):
        check_size(tiny_pipeline, (0, 64))


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_size_roundtrip(height, width):
    assert parse_size(format_size((height, width))) == (height, width)


@pytest.mark.parametrize("text", ["", "64x", "axb", "1x2x3", "-8", "0", "64x-8", "1.5"])
def test_parse_size_rejects_invalid_text(text):
    with pytest.raises(InputError):
        parse_size(text)


def test_image_depends_only_on_its_seed_and_prompt(tiny_pipeline):
    both = sample_images(tiny_pipeline, ["a", "b"], (64, 64), [0, 1], steps=2, guidance_scale=4.0)
    alone = sample_images(tiny_pipeline, ["b"], (64, 64), [1], steps=2, guidance_scale=4.0)
    assert np.abs(np.asarray(both[1], int) - np.asarray(alone[0], int)).max() <= 1
    assert not np.array_equal(both[0], both[1])


def test_fingerprint_includes_offloaded_weights(tiny_folder):
    pipeline = load(tiny_folder, device="cpu")
    before = fingerprint(pipeline)
    pipeline.unet = cpu_offload(pipeline.unet, torch.device("cpu"))
    assert any(p.is_meta for p in pipeline.unet.parameters())
    assert fingerprint(pipeline) == before
    pipeline.unet.register_parameter("own", torch.nn.Parameter(torch.zeros(3, device="meta")))
    with pytest.raises(InputError, match="'own' of UNet2DConditionModel are not in memory"):
        fingerprint(pipeline)


def test_fingerprint_changes_with_the_strength_of_an_adapter(tiny_folder):
    pipeline = load(tiny_folder, device="cpu")
    pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q"], init_lora_weights=False), "mine")
    found = []
    for scale in (1.0, 0.2, 1.0):
        pipeline.unet.set_adapters(["mine"], scale)
        found.append(fingerprint(pipeline))
    assert found[0] == found[2] != found[1]
