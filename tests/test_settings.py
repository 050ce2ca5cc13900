"""Execution modes of a model: the image stays bit-identical, and every attention layer is measured."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, disk_offload
from accelerate.hooks import remove_hook_from_module
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    T2IAdapter,
)
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.attention_processor import AttnProcessor
from families import FAMILIES
from families.pipelines import PIPELINES, seeded
from families.truth import eager, entropy
from peft import LoraConfig
from torch.nn.attention import SDPBackend, sdpa_kernel

from entropy_probe.attention import attention_layers, capture
from entropy_probe.errors import CaptureError
from entropy_probe.laws import scaled
from entropy_probe.models import load, sample_images


@pytest.fixture
def tiny_pipeline(tiny_folder):
    """Load a separate pipeline for every test, because these tests change it."""
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


ROUNDING = 1e-5
"""Maximum change of an entropy computed in another order in float32, nats: 20 times its spacing at ln 256."""

WAYS = [
    pytest.param(nothing, lambda: torch.autocast("cpu", torch.bfloat16), None, id="autocast"),
    pytest.param(nothing, torch.inference_mode, 0.0, id="inference mode"),
    pytest.param(nothing, lambda: sdpa_kernel(SDPBackend.MATH), ROUNDING, id="math kernel"),
    pytest.param(channels_last, nullcontext, ROUNDING, id="channels last"),
    pytest.param(fused_projections, nullcontext, ROUNDING, id="fused projections"),
    pytest.param(layerwise_casting, nullcontext, None, id="layerwise casting"),
    pytest.param(group_offloading, nullcontext, 0.0, id="group offloading"),
]
"""Preparation, context, and maximum change of the first step's entropies; None for modes of lower precision."""


def written_out(pipeline, sample):
    """Return the mean entropy of every call of a sampling run, (batch, heads), computed in float64."""
    maps = []
    with eager(pipeline.unet, (), maps):
        sample()
    return [entropy(weights).mean(-1) for weights in maps]


@pytest.mark.parametrize(("prepare", "context", "moves"), WAYS)
def test_capture_is_exact_in_every_execution_mode(tiny_pipeline, sample, prepare, context, moves):
    with capture(tiny_pipeline) as usual:
        sample()
    prepare(tiny_pipeline.unet)
    with context():
        plain = sample()
        with capture(tiny_pipeline) as captured:
            image = sample()
        truth = written_out(tiny_pipeline, sample)
    assert all(np.array_equal(a, b) for a, b in zip(plain, image, strict=True))
    assert {record.layer for record in captured.calls} == set(attention_layers(tiny_pipeline.unet))
    for record, expected in zip(captured.calls, truth, strict=True):
        assert (record.entropy.double() - expected).abs().max() <= ROUNDING, record.layer
    here, there = captured.frame(), usual.frame()
    keys = ["layer", "head", "kind", "branch", "step", "sample", "query_tokens", "training_tokens"]
    assert here[keys].equals(there[keys])
    first = there["step"] == 0  # rounding differences grow from step to step
    moved = (here["entropy"] - there["entropy"])[first].abs().max()
    assert moved > ROUNDING if moves is None else moved <= moves


def one_by_one(unet, folder):
    """Offload as `enable_sequential_cpu_offload`, which loads the weights of one module at a time."""
    cpu_offload(unet, execution_device=torch.device("cpu"))


def as_a_whole(unet, folder):
    """Offload as `enable_model_cpu_offload`."""
    cpu_offload_with_hook(unet, execution_device=torch.device("cpu"))


def from_disk(unet, folder):
    disk_offload(unet, folder, execution_device=torch.device("cpu"))


def state(unet):
    """Return the hooks of a model, and the devices of its weights."""
    return {
        name: (
            list(module._forward_pre_hooks.values()),
            list(module._forward_hooks.values()),
            module.__dict__.get("forward"),
            module.__dict__.get("_hf_hook"),
            [(key, parameter.device) for key, parameter in module.named_parameters(recurse=False)],
        )
        for name, module in unet.named_modules()
    }


@pytest.mark.parametrize("offload", [one_by_one, as_a_whole, from_disk])
def test_accelerate_offloading_works_around_the_hooks(tiny_pipeline, sample, tmp_path, offload):
    unet, weights = tiny_pipeline.unet, copy.deepcopy(tiny_pipeline.unet.state_dict())
    plain = sample()
    with capture(tiny_pipeline) as usual:
        sample()
    with scaled(tiny_pipeline, "paper"):
        larger = sample((96, 64))
    offload(unet, tmp_path)
    before = state(unet)
    assert all(hook is not None for _, _, _, hook, weights in before.values() if weights and offload is not as_a_whole)
    with capture(tiny_pipeline) as captured:
        assert all(np.array_equal(a, b) for a, b in zip(sample(), plain, strict=True))
    assert captured.frame().equals(usual.frame())
    with scaled(tiny_pipeline, "paper"):
        scaled_images = sample((96, 64))
    assert all(np.array_equal(a, b) for a, b in zip(scaled_images, larger, strict=True))
    assert not np.array_equal(sample((96, 64))[0], larger[0])
    assert state(unet) == before
    remove_hook_from_module(unet, recurse=True)
    assert all(torch.equal(weight, weights[name]) for name, weight in unet.state_dict().items())
    assert all(np.array_equal(a, b) for a, b in zip(sample(), plain, strict=True))


def test_autocast_rounds_float32_outputs_of_norms():
    family = next(family for family in FAMILIES if family.name == "Stable Diffusion 3.5")
    denoiser = family.build()
    inputs, maps = family.inputs(denoiser, 8, 8), []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with capture(denoiser) as captured:
            denoiser(**inputs)
        with eager(denoiser, (), maps):
            denoiser(**inputs)
    for record, weights in zip(captured.calls, maps, strict=True):
        image = slice(0, record.tokens)  # the text follows
        assert (record.entropy.double() - entropy(weights)[..., image].mean(-1)).abs().max() <= ROUNDING


def test_capture_does_not_change_gradients(tiny_pipeline):
    latents, text = torch.randn(1, 4, 16, 16), torch.randn(1, 16, 32)
    unet = tiny_pipeline.unet
    gradients = []
    for context in (nullcontext(), capture(unet)):
        own = latents.clone().requires_grad_()
        with context:
            unet(own, torch.tensor(500), text).sample.square().sum().backward()
        gradients.append(own.grad)
    assert torch.equal(*gradients)


def sliced(unet):
    unet.set_attention_slice("auto")


def written_in_torch(unet):
    unet.set_attn_processor(AttnProcessor())


@pytest.mark.parametrize("prepare", [sliced, written_in_torch])
def test_invisible_attention_is_named_with_a_remedy(tiny_pipeline, sample, prepare):
    prepare(tiny_pipeline.unet)
    with (
        pytest.raises(CaptureError, match=r"down_blocks\.0\.attentions\.0\.[^ ]*attn1.*native"),
        capture(tiny_pipeline),
    ):
        sample()


@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash", "flex"])
def test_backends_of_diffusers_are_measured_or_named(backend):
    flux = next(family for family in FAMILIES if family.name == "Flux")
    denoiser = flux.build()
    inputs = flux.inputs(denoiser, 8, 8)
    with torch.no_grad(), attention_backend(backend):
        plain = denoiser(**inputs)[0]
        if backend == "flex":
            with pytest.raises(CaptureError, match=r"transformer_blocks\.0\.attn.*native"), capture(denoiser):
                denoiser(**inputs)
            return
        with capture(denoiser) as captured:
            assert torch.equal(denoiser(**inputs)[0], plain)
    assert [record.layer for record in captured.calls] == attention_layers(denoiser)


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


def with_t2i_adapter(pipeline):
    torch.manual_seed(0)
    adapter = T2IAdapter(in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=4).eval()
    parts = {name: part for name, part in pipeline.components.items() if name != "image_encoder"}
    other = StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
    return other, {"image": torch.rand(1, 3, 64, 64), "height": 64, "width": 64}


def with_lora(pipeline):
    torch.manual_seed(0)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    return pipeline, {"height": 64, "width": 64}


def with_ip_adapter(pipeline):
    """Add four image tokens to the text, in every cross-attention."""
    torch.manual_seed(0)
    unet, keys, width = pipeline.unet, {}, pipeline.unet.config.cross_attention_dim
    layers = [name for name in unet.attn_processors if ".attn2." in name]
    for name in layers:
        own = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        number = 2 * layers.index(name) + 1
        keys |= {f"{number}.to_{part}_ip.weight": torch.randn(own, width) for part in "kv"}
    projection = {
        "proj.weight": torch.randn(4 * width, 8), "proj.bias": torch.randn(4 * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys}])
    return pipeline, {"ip_adapter_image_embeds": [torch.randn(2, 1, 8)], "height": 64, "width": 64}


OTHERS = [image_to_image, inpainting, controlled, with_t2i_adapter, with_lora, with_ip_adapter]


@pytest.mark.parametrize("make", OTHERS)
def test_other_pipelines_of_a_family_are_measured(tiny_pipeline, make):
    torch.manual_seed(0)
    pipeline, inputs = make(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)

    def run():
        generator = torch.Generator().manual_seed(0)
        return pipeline("a", num_inference_steps=3, output_type="np", generator=generator, **inputs).images

    plain = run()
    with capture(pipeline) as captured:
        assert np.array_equal(run(), plain)
    frame = captured.frame()
    assert set(frame["layer"]) == set(attention_layers(pipeline.unet))
    assert set(frame["branch"]) == {"cond", "uncond"}
    finest = frame[frame["kind"] == "self"]["query_tokens"].max()
    assert finest == frame["training_tokens"].max()
    cross = frame[frame["kind"] == "cross"]
    assert set(cross["key_tokens"]) == ({16, 4} if make is with_ip_adapter else {16})


def test_nested_captures_and_two_pipelines_are_measured_together(tiny_pipeline, sample):
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


@pytest.fixture
def two_pipelines(tiny_pipeline):
    """Return samplers of a UNet and of a transformer, and their pipelines. `between` is called after each step."""
    other = seeded(PIPELINES["Stable Diffusion 3"])
    for pipeline in (tiny_pipeline, other):
        pipeline.set_progress_bar_config(disable=True)

    def sampled(pipeline, seed, between=None):
        def at_the_end_of_a_step(pipeline, step, timestep, tensors):
            if between is not None:
                between(step)
            return {}

        return pipeline(
            "flat pizza", height=32, width=64, num_inference_steps=3, output_type="np", guidance_scale=4.0,
            generator=torch.Generator().manual_seed(seed), callback_on_step_end=at_the_end_of_a_step,
        ).images  # fmt: skip

    return [partial(sampled, pipeline) for pipeline in (tiny_pipeline, other)], (tiny_pipeline, other)


def alone(sampled, pipeline, seeds):
    """Return the images and the table of a capture of one pipeline."""
    with capture(pipeline, rows=4) as captured:
        images = [sampled(seed) for seed in seeds]
    return images, captured.frame()


def test_alternating_pipelines_are_measured_separately(two_pipelines):
    samplers, (a, b) = two_pipelines
    (first, frame_a), (second, frame_b) = (
        alone(sampled, p, (0, 1)) for sampled, p in zip(samplers, (a, b), strict=True)
    )
    with capture(a, rows=4) as of_a, capture(b, rows=4) as of_b:
        drawn = [(samplers[0](seed), samplers[1](seed)) for seed in (0, 1)]
    for (image_a, image_b), alone_a, alone_b in zip(drawn, first, second, strict=True):
        assert np.array_equal(image_a, alone_a)
        assert np.array_equal(image_b, alone_b)
    assert set(frame_a["sampling"]) == set(frame_b["sampling"]) == {0, 1}
    assert of_a.frame().equals(frame_a)
    assert of_b.frame().equals(frame_b)


@pytest.mark.parametrize("outer", [0, 1])
def test_pipeline_sampled_between_the_steps_of_another_is_measured(two_pipelines, outer):
    samplers, pipelines = two_pipelines
    inner = 1 - outer
    image, frame = alone(samplers[outer], pipelines[outer], [0])
    inner_images, inner_frame = alone(samplers[inner], pipelines[inner], range(3))
    seen = []
    with capture(pipelines[outer], rows=4) as around, capture(pipelines[inner], rows=4) as within:
        drawn = samplers[outer](0, between=lambda step: seen.append(samplers[inner](step)))
    assert np.array_equal(drawn, image[0])
    assert all(np.array_equal(one, other) for one, other in zip(seen, inner_images, strict=True))
    assert around.frame().equals(frame)
    assert within.frame().equals(inner_frame)


def test_two_threads_with_separate_models_are_measured(tiny_folder):
    pipelines = [load(tiny_folder, device="cpu") for _ in range(2)]

    def measure(seed):
        pipeline = pipelines[seed]
        with capture(pipeline) as captured:
            sample_images(pipeline, ["a"], (64, 64), [seed], steps=3, guidance_scale=4.0)
        return captured.frame()

    alone = [measure(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(measure, (0, 1)))
    for one, other in zip(alone, together, strict=True):
        assert one.equals(other)


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_model_is_refused_with_the_reason(tiny_pipeline, in_place):
    unet = tiny_pipeline.unet
    if in_place:
        unet.mid_block.compile(backend="eager")
    else:
        unet = torch.compile(unet, backend="eager")
    for context in (capture(unet), scaled(unet, "paper")):
        with pytest.raises(CaptureError, match=r"compiled by torch\.compile"), context:
            pass
