"""Every way a model is run: the image stays the same to the bit, and every attention layer is seen."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from entropy_probe.capture import attention_layers, capture
from entropy_probe.errors import CaptureError
from entropy_probe.laws import scaled
from entropy_probe.pipelines import load


@pytest.fixture
def tiny_pipeline(tiny_folder):
    """One of its own for every test: these change it."""
    return load(tiny_folder, device="cpu")


def nothing(unet):
    return None


def channels_last(unet):
    unet.to(memory_format=torch.channels_last)


def fused_projections(unet):
    unet.fuse_qkv_projections()


def layerwise_casting(unet):
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def group_offloading(unet):
    unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


WAYS = [
    pytest.param(nothing, lambda: torch.autocast("cpu", torch.bfloat16), id="autocast"),
    pytest.param(nothing, torch.inference_mode, id="inference mode"),
    pytest.param(nothing, lambda: sdpa_kernel(SDPBackend.MATH), id="math kernel"),
    pytest.param(channels_last, nullcontext, id="channels last"),
    pytest.param(fused_projections, nullcontext, id="fused projections"),
    pytest.param(layerwise_casting, nullcontext, id="layerwise casting"),
    pytest.param(group_offloading, nullcontext, id="group offloading"),
]


@pytest.mark.parametrize(("prepare", "context"), WAYS)
def test_a_setting_of_the_model_changes_nothing(tiny_pipeline, sample, prepare, context):
    with capture(tiny_pipeline) as usual:
        sample()
    prepare(tiny_pipeline.unet)
    with context():
        plain = sample()
        with capture(tiny_pipeline) as captured:
            image = sample()
    assert all(np.array_equal(a, b) for a, b in zip(plain, image, strict=True))
    assert {record.layer for record in captured.records} == set(attention_layers(tiny_pipeline.unet))
    here, there = captured.frame(), usual.frame()
    keys = ["layer", "head", "kind", "branch", "step", "sample", "query_tokens", "training_tokens"]
    assert here[keys].equals(there[keys])
    first = there["step"] == 0  # rounding grows from step to step
    assert (here["entropy"] - there["entropy"])[first].abs().max() < 0.2


def test_gradients_flow_as_without(tiny_pipeline):
    latents, text = torch.randn(1, 4, 16, 16), torch.randn(1, 16, 32)
    unet = tiny_pipeline.unet
    gradients = []
    for context in (nullcontext(), capture(unet)):
        own = latents.clone().requires_grad_()
        with context:
            unet(own, torch.tensor(500), text).sample.square().sum().backward()
        gradients.append(own.grad)
    assert torch.equal(*gradients)


def test_sliced_attention_is_named(tiny_pipeline, sample):
    tiny_pipeline.enable_attention_slicing()
    with (
        pytest.raises(CaptureError, match="made no call of torch's scaled_dot_product_attention"),
        capture(tiny_pipeline),
    ):
        sample()
    tiny_pipeline.disable_attention_slicing()


def image_to_image(pipeline):
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    return other, {"image": torch.rand(1, 3, 64, 64), "strength": 0.8}


def inpainting(pipeline):
    other = StableDiffusionInpaintPipeline(**pipeline.components, requires_safety_checker=False)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:40, 16:40] = 1
    return other, {"image": torch.rand(1, 3, 64, 64), "mask_image": mask, "height": 64, "width": 64}


def controlled(pipeline):
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 16, 16)).eval()
    parts = pipeline.components | {"controlnet": net}
    other = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    return other, {"image": torch.rand(1, 3, 64, 64), "height": 64, "width": 64}


@pytest.mark.parametrize("make", [image_to_image, inpainting, controlled])
def test_other_pipelines_of_a_family(tiny_pipeline, make):
    torch.manual_seed(0)
    pipeline, inputs = make(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipeline("a", num_inference_steps=3, output_type="np", generator=generator, **inputs).images

    plain = draw()
    with capture(pipeline) as captured:
        assert np.array_equal(draw(), plain)
    frame = captured.frame()
    assert set(frame["layer"]) == set(attention_layers(pipeline.unet))
    assert set(frame["branch"]) == {"cond", "uncond"}
    finest = frame[frame["kind"] == "self"]["query_tokens"].max()
    assert finest == frame["training_tokens"].max()


def test_captures_nest_and_two_pipelines_are_measured_at_once(tiny_pipeline, sample):
    with capture(tiny_pipeline) as alone:
        sample()
    other = StableDiffusionImg2ImgPipeline(**tiny_pipeline.components, requires_safety_checker=False)
    with capture(tiny_pipeline) as outer, capture(tiny_pipeline, layers="*attn1") as inner, capture(other) as third:
        sample()
    for captured in (outer, third):
        assert captured.frame()["entropy"].equals(alone.frame()["entropy"])
    own = alone.frame()
    own = own[own["layer"].str.endswith("attn1")].reset_index(drop=True)
    assert inner.frame()["entropy"].equals(own["entropy"])


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_refused_with_the_reason(tiny_pipeline, in_place):
    unet = tiny_pipeline.unet
    if in_place:
        unet.mid_block.compile(backend="eager")
    else:
        unet = torch.compile(unet, backend="eager")
    for context in (capture(unet), scaled(unet, "paper")):
        with pytest.raises(CaptureError, match=r"compiled by torch\.compile"), context:
            pass
