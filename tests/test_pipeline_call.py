"""Sweeps of pipelines that need more than a prompt, or have none: image-to-image, inpainting, ControlNet, DDPM, DiT."""

import copy
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DModel,
)
from PIL import Image

import entropy_probe as ep
from entropy_probe.attention import attention_layers
from entropy_probe.cli import main as cli
from entropy_probe.errors import InputError
from entropy_probe.models import layers
from entropy_probe.runs import extend

pytestmark = pytest.mark.filterwarnings("ignore:.*also runs in the sampling steps")
PHOTO = Image.effect_noise((100, 80), 60).convert("RGB")
MASK = Image.new("L", (100, 80))
MASK.paste(255, (10, 10, 60, 60))
GRID = {"prompts": ["noto red apple", "flat pizza"], "sizes": [(32, 48), (64, 64)], "seeds": [0, 1], "steps": 2}


def image_to_image(parts):
    return StableDiffusionImg2ImgPipeline(**parts), {"image": PHOTO, "strength": 0.7, "negative_prompt": "blue"}


def inpainting(parts):
    return StableDiffusionInpaintPipeline(**parts), {"image": PHOTO, "mask_image": MASK, "strength": 1.0}


def controlnet(parts):
    net = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(8, 16, 16)).eval()
    return StableDiffusionControlNetPipeline(**parts, controlnet=net), {"image": PHOTO}


NEED_IMAGES = {image_to_image: "'image'", inpainting: "'image' and 'mask_image'", controlnet: "'image'"}


@pytest.fixture
def build(tiny_pipeline):
    def make(kind):
        torch.manual_seed(0)
        pipeline, given = kind(copy.deepcopy(tiny_pipeline).components | {"requires_safety_checker": False})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline, given

    return make


def ddpm():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = DDPMPipeline(unet.eval(), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def dit():
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, latent_channels=4)
    pipeline = DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", NEED_IMAGES)
def test_sweep_equals_own_calls_of_the_pipeline(build, kind, tmp_path):
    pipeline, given = build(kind)
    swept = ep.sweep(pipeline, **GRID, store=tmp_path / "run", batch=1, progress=False, pipeline_kwargs=given)
    frame = swept.frame()
    assert set(frame["layer"]) == set(attention_layers(pipeline.unet))
    assert len(frame.groupby(["prompt", "seed", "height", "width"])) == 8
    for height, width in GRID["sizes"]:
        own = {
            name: value.resize((width, height), 0 if value is MASK else Image.Resampling.LANCZOS)
            if isinstance(value, Image.Image)
            else value
            for name, value in given.items()
        }
        own |= {} if kind is image_to_image else {"height": height, "width": width}
        with ep.capture(pipeline) as captured:
            expected = pipeline(
                "flat pizza", num_inference_steps=2, guidance_scale=swept.manifest.guidance_scale,
                generator=torch.Generator().manual_seed(1), **own,
            ).images[0]  # fmt: skip
        assert np.array_equal(swept.image("flat pizza", (height, width), 1), expected)
        cell = frame[(frame["prompt"] == "flat pizza") & (frame["seed"] == 1) & (frame["height"] == height)]
        if height == 64:  # at the smaller size, two cells share a batch, which changes the last digits
            assert np.allclose(cell["entropy"], captured["entropy"], atol=1e-5)


@pytest.mark.parametrize("kind", NEED_IMAGES)
def test_validation_samples_a_law_with_the_same_arguments(build, kind):
    pipeline, given = build(kind)
    swept = ep.sweep(pipeline, **GRID, progress=False, pipeline_kwargs=given)
    law = ep.derive(swept, rounds=1, progress=False)
    outcome = ep.validate(swept, [law], scorer=None, progress=False)
    assert law.name in set(outcome.layers()["law"])
    lawful = extend(swept, laws=["paper"], progress=False)
    cell = ("flat pizza", (32, 48), 0)
    assert not np.array_equal(lawful.image(*cell, law="paper"), swept.image(*cell))
    assert np.array_equal(lawful.image("flat pizza", (64, 64), 0, law="paper"), swept.image("flat pizza", (64, 64), 0))


@pytest.mark.parametrize("kind", NEED_IMAGES)
def test_missing_image_is_named_in_one_line(build, kind):
    pipeline, _ = build(kind)
    with pytest.raises(InputError, match=f"{type(pipeline).__name__} needs {NEED_IMAGES[kind]}: pass") as refused:
        ep.sweep(pipeline, **GRID, progress=False)
    assert "pipeline_kwargs={'image': ..." in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_arguments_are_refused_when_a_run_is_resumed(build, tmp_path):
    pipeline, given = build(image_to_image)
    one = GRID | {"sizes": [(32, 32)], "seeds": [0], "store": tmp_path / "run", "progress": False}
    swept = ep.sweep(pipeline, **one, pipeline_kwargs=given)
    described = swept.manifest.pipeline_kwargs
    assert described["strength"] == "0.7"
    assert described["image"].startswith("RGB image of 100x80 pixels, blake2b ")
    ep.sweep(pipeline, **one, pipeline_kwargs={**given, "image": PHOTO.copy()})
    for other in ({"image": PHOTO.rotate(180)}, {"strength": 0.5}):
        with pytest.raises(InputError, match="holds another run, with pipeline_kwargs"):
            ep.sweep(pipeline, **one, pipeline_kwargs=given | other)
    with pytest.raises(InputError, match=r"was sampled with pipeline_kwargs image \(RGB image"):
        ep.Sweep.open(tmp_path / "run", pipeline)
    opened = ep.Sweep.open(tmp_path / "run", pipeline, pipeline_kwargs=given)
    assert len(extend(opened, laws=["paper"], progress=False).frame()) == len(swept.frame())
    assert len(ep.Sweep.open(tmp_path / "run").frame()) == len(swept.frame())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strenght": 0.5}, "has no argument 'strenght'; its arguments are: prompt, image, strength"),
        ({"height": 64}, "pipeline_kwargs cannot contain 'height', which is set for every batch"),
        ({"image": PHOTO, "callback_on_step_end": print}, "must be images, tensors, texts or numbers, .* got builtin"),
    ],
)
def test_invalid_arguments_are_refused(build, given, message):
    pipeline, _ = build(image_to_image)
    with pytest.raises(InputError, match=message):
        ep.sweep(pipeline, **GRID, progress=False, pipeline_kwargs=given)


def test_tensor_is_resized_like_an_image(build):
    pipeline, _ = build(controlnet)
    tensor = torch.rand(1, 3, 80, 100)
    swept = ep.sweep(pipeline, **GRID, progress=False, pipeline_kwargs={"image": tensor})
    assert swept.image("flat pizza", (32, 48), 0).size == (48, 32)
    assert swept.manifest.pipeline_kwargs["image"].startswith("torch.float32 tensor of shape (1, 3, 80, 100), blake2b")


def test_unconditional_pipeline_needs_no_prompts():
    pipeline = ddpm()
    swept = ep.sweep(pipeline, sizes=[(16, 16)], seeds=[0, 1], steps=2, progress=False)
    with ep.capture(pipeline) as captured:
        images = pipeline(
            batch_size=2, num_inference_steps=2, generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)]
        ).images
    assert np.array_equal(swept.image("(no prompt)", (16, 16), 1), images[1])
    assert np.allclose(swept.frame()["entropy"].mean(), captured["entropy"].mean(), atol=1e-5)
    assert len(extend(swept, laws=["paper"], progress=False).frame()) == len(swept.frame())
    with pytest.raises(InputError, match="DDPMPipeline takes no prompts"):
        ep.sweep(pipeline, prompts=["a", "b"], sizes=[(16, 16)], progress=False)
    with pytest.raises(InputError, match="DDPMPipeline samples only 16 pixels, got size 32"):
        ep.sweep(pipeline, sizes=[(32, 32)], progress=False)


def test_class_label_is_used_for_every_image():
    pipeline = dit()
    with pytest.raises(InputError, match=r"DiTPipeline needs 'class_labels': pass pipeline_kwargs={'class_labels'"):
        ep.sweep(pipeline, sizes=[(8, 8)], progress=False)
    swept = ep.sweep(
        pipeline, sizes=[(8, 8)], seeds=[0, 1, 2], steps=2, progress=False, pipeline_kwargs={"class_labels": 3}
    )
    images = pipeline(
        [3] * 3, num_inference_steps=2, guidance_scale=swept.manifest.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in range(3)],
    ).images  # fmt: skip
    assert all(np.array_equal(swept.image("(no prompt)", (8, 8), seed), images[seed]) for seed in range(3))


def test_prompts_of_a_pipeline_with_prompts_are_needed(tiny_pipeline):
    with pytest.raises(InputError, match="StableDiffusionPipeline needs prompts"):
        ep.sweep(tiny_pipeline, sizes=[(32, 32)], progress=False)


@pytest.mark.parametrize("kind", [*NEED_IMAGES, "ddpm", "dit"])
def test_layers_are_listed(build, kind):
    pipeline = {"ddpm": ddpm, "dit": dit}[kind]() if isinstance(kind, str) else build(kind)[0]
    denoiser = pipeline.transformer if kind == "dit" else pipeline.unet
    assert {layer.name for layer in layers(pipeline)} == set(attention_layers(denoiser))


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["entropy-probe", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_commands_read_the_arguments_from_a_file(build, tmp_path, monkeypatch, capsys):
    pipeline, _ = build(image_to_image)
    pipeline.save_pretrained(tmp_path / "model")
    PHOTO.save(tmp_path / "photo.png")
    (tmp_path / "call.yaml").write_text("image: photo.png\nstrength: 0.7\n")
    run = ("--model", tmp_path / "model", "--device", "cpu")
    grid = (*run, "--sizes", "32,64", "--prompts", "2", "--seeds", "0,1", "--steps", "2", "--out", tmp_path / "run")
    assert command(monkeypatch, "info", *run) == 0
    assert "mid.0.0.attn1" in capsys.readouterr().out
    assert command(monkeypatch, "sweep", *grid) == 2
    assert "needs 'image'" in capsys.readouterr().err
    assert command(monkeypatch, "sweep", *grid, "--pipeline-kwargs", tmp_path / "call.yaml") == 0
    manifest = ep.Sweep.open(tmp_path / "run").manifest
    assert manifest.pipeline_kwargs["strength"] == "0.7"
    assert (
        command(monkeypatch, "validate", "--out", tmp_path / "run", "--laws", "original,paper", "--metrics", "none")
        == 0
    )
    assert command(monkeypatch, "sweep", "--config", tmp_path / "run" / "config.yaml", "--out", tmp_path / "run") == 0
