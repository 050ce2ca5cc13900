"""Complete pipelines of many model families, loaded from a folder: `info`, capture and laws work without any hints."""

import copy
import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPAGPipeline, WanPipeline
from families import FAMILIES
from families.pipelines import PIPELINES, WHOLE, by_family, of_family, seeded, stable_cascade_decoder
from PIL import Image
from typer.testing import CliRunner

from entropy_probe import apply, capture, export, remove, scaled
from entropy_probe.attention import attention_layers, find_denoiser
from entropy_probe.cli.main import app
from entropy_probe.errors import CaptureError, InputError
from entropy_probe.laws import applied
from entropy_probe.models import denoising_loss, layers, sample_images, training_size

SIZES = {"Stable Diffusion XL": (64, 64), "Stable Diffusion 3": (64, 64), "Flux": (512, 512)}
TOKENS = {"Stable Diffusion XL": 64, "Stable Diffusion 3": 64, "Flux": 64 * 64}
GUIDED = {"Stable Diffusion XL", "Stable Diffusion 3"}


@pytest.fixture(params=PIPELINES)
def name(request):
    return request.param


@pytest.fixture
def pipeline(name):
    pipeline = seeded(PIPELINES[name])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_info_shows_every_layer(name, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["info", "--model", str(tmp_path), "--sizes", "64x32", "--json"])
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert shown["training_size"] == list(SIZES[name]) == list(training_size(pipeline))
    assert {layer["layer"] for layer in shown["layers"]} == set(attention_layers(find_denoiser(pipeline)))
    visual = [layer for layer in shown["layers"] if layer["kind"] in ("self", "joint")]
    assert {layer["training_tokens"] for layer in visual} == {TOKENS[name]}
    assert {layer["grid at 64x32"] for layer in visual} == {"8x4"}


TRAINED = {
    "Kolors": ([32, 32], {4, 16}),
    "DeepFloyd IF": ([8, 8], {4, 16}),
    "Stable Cascade prior": ([1024, 1024], {32 * 32}),
    "unconditional UNet": ([8, 8], {4, 16}),
    "DiT": ([8, 8], {16}),
    "PixArt-Sigma": ([32, 32], {16}),
    "HunyuanDiT": ([64, 64], {16}),
    "Stable Diffusion 3.5": ([32, 32], {16}),
    "AuraFlow": ([32, 32], {16}),
    "Lumina-Next": ([64, 64], {16}),
    "Flux.2": ([512, 512], {64 * 64}),
    "Chroma": ([512, 512], {64 * 64}),
    "Lumina 2": ([64, 64], {16}),
    "Sana": ([32, 32], set()),
    "CogView3+": ([32, 32], {16}),
    "CogView4": ([32, 32], {16}),
    "Z-Image": (None, {None}),
    "Qwen-Image": ([512, 512], {64 * 64}),
    "HiDream": ([512, 512], {64 * 64}),
    "AnimateDiff": ([32, 32], {4, 16, 64, None}),
    "Stable Video Diffusion": ([32, 32], {4, 16, 64, None}),
    "CogVideoX": ([64, 64], {16}),
    "Wan": ([480, 832], {30 * 52}),
    "LTX-Video": ([512, 704], {16 * 22}),
    "HunyuanVideo": ([720, 1280], {45 * 80}),
    "HunyuanVideo 1.5": (None, {None}),
    "Mochi": ([480, 848], {30 * 53}),
    "Allegro": ([64, 64], {16}),
}
"""Training size in pixels, and training tokens in one frame of the visual layers; None if they are unknown."""
TRAINING_FRAMES = {"CogVideoX": 3, "Wan": 21, "LTX-Video": 21, "HunyuanVideo": 33, "Mochi": 4, "Allegro": 3}
"""Frames of tokens of the default clip: of 81, 161, 129 and 19 frames, or of the configuration."""
ONE_SIZE = {"unconditional UNet", "DiT", "DeepFloyd IF"}


NOT_SHOWN = {"OmniGen", "PRX", "Stable Cascade decoder"}
"""OmniGen needs torchvision. transformers cannot load the text encoder of PRX from a folder. The Stable Cascade decoder
needs the output of the prior."""


def test_info_covers_every_family_except_those_listed():
    elsewhere = {"Stable Diffusion 1.5", "Stable Diffusion 2.1", "SDXL", "PixArt-alpha", "Stable Diffusion 3", "Flux"}
    assert WHOLE.keys() == TRAINED.keys()
    assert {family.name for family in FAMILIES} == TRAINED.keys() | elsewhere | NOT_SHOWN


@pytest.mark.parametrize("family", TRAINED)
def test_info_on_more_families(family, tmp_path):
    size, tokens = TRAINED[family]
    torch.manual_seed(0)
    by_family(family).save_pretrained(tmp_path)
    command = ["info", "--model", str(tmp_path), "--json", *([] if family in ONE_SIZE else ["--sizes", "64x128"])]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert shown["training_size"] == size
    visual = [layer for layer in shown["layers"] if layer["kind"] in ("self", "joint")]
    length = TRAINING_FRAMES.get(family, 1)
    assert {layer["training_tokens"] for layer in visual} == {count and count * length for count in tokens}
    shapes = {layer["grid at 64x128"] for layer in visual} - {None} if family not in ONE_SIZE else set()
    assert all(int(shape.split("x")[1]) == 2 * int(shape.split("x")[0]) for shape in shapes)


def test_info_requires_a_size_if_the_model_has_no_training_size(tmp_path):
    by_family("Z-Image").save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["info", "--model", str(tmp_path)])
    assert isinstance(result.exception, InputError)
    assert "--sizes 1024" in str(result.exception)


def test_pipeline_with_one_size_refuses_other_sizes():
    with pytest.raises(InputError, match="samples only 8 pixels, got size 16"):
        layers(by_family("DiT"), (16, 16))


def test_missing_inputs_are_named_and_a_user_call_can_be_captured():
    family = next(family for family in FAMILIES if family.name == "Stable Cascade decoder")
    pipeline = seeded(lambda: stable_cascade_decoder(family.build()))
    with pytest.raises(InputError, match=r"without image_embeddings: call it yourself in a capture"):
        layers(pipeline, (64, 64))
    embeddings = torch.randn(1, pipeline.decoder.config.effnet_in_channels, 3, 3)
    with capture(pipeline) as captured:
        pipeline(embeddings, "a red apple", num_inference_steps=2, guidance_scale=0.0, output_type="latent")
    assert set(captured.frame()["layer"]) == set(attention_layers(pipeline.decoder))


def test_layers_runs_the_denoiser_once_and_restores_the_pipeline(pipeline):
    passes, decoded = [], []
    denoiser = find_denoiser(pipeline)
    hooks = [denoiser.register_forward_hook(lambda *_: passes.append(1))]
    hooks += [pipeline.vae.decoder.register_forward_hook(lambda *_: decoded.append(1))]
    layers(pipeline)
    assert (len(passes), len(decoded)) == (1, 0)
    assert len(denoiser._forward_hooks) == 1
    for hook in hooks:
        hook.remove()


def test_layers_restores_exchanged_processors(tmp_path):
    """Perturbed-attention guidance replaces the attention processors until its sampling ends."""
    plain = seeded(PIPELINES["Stable Diffusion XL"])
    pipeline = StableDiffusionXLPAGPipeline(**plain.components, pag_applied_layers=["up"])
    before = {name: type(p) for name, p in pipeline.unet.attn_processors.items()}
    layers(pipeline)
    assert {name: type(p) for name, p in pipeline.unet.attn_processors.items()} == before


def test_pipeline_is_captured_and_scaled(name, pipeline):
    def image():
        return np.asarray(sample_images(pipeline, ["a red apple"], (64, 32), [0], steps=2, guidance_scale=4.0)[0])

    plain = image()
    with capture(pipeline) as captured:
        assert np.array_equal(image(), plain)
    frame = captured.frame()
    assert set(frame["branch"]) == ({"cond", "uncond"} if name in GUIDED else {"cond"})
    assert set(frame.loc[frame["kind"] != "cross", "training_tokens"]) == {TOKENS[name]}
    joint = frame[frame["kind"] == "joint"]
    assert joint["image_mass"].between(0, 1, inclusive="neither").all()
    assert set(joint["rows"]) <= {32}
    with scaled(pipeline, "paper"):
        assert not np.array_equal(image(), plain)
    assert np.array_equal(image(), plain)
    assert {layer.kind for layer in layers(pipeline)} == set(frame["kind"])


VIDEO_FRAMES = 9
STEPS = {"Mochi": 4, "HiDream": 1}
"""Mochi's schedule needs at least 4 steps. HiDream always samples a million pixels, so it gets only 1."""
NOT_GUIDED = {"unconditional UNet", "Flux.2"}
"""The unconditional UNet has no prompt. Flux.2 is distilled and takes the guidance scale as an input."""


def captured_call(family, pipeline, guidance):
    """Sample with a guidance scale, using the argument names of this pipeline, and return the captured frame."""
    known = inspect.signature(pipeline.__call__).parameters
    distilled = "true_cfg_scale" in known  # then `guidance_scale` is an input of the denoiser
    arguments = {
        "prompt": "a red apple", "height": 64, "width": 64, "num_frames": VIDEO_FRAMES, "output_type": "latent",
        "num_inference_steps": STEPS.get(family, 2), "guidance_scale": 3.0 if distilled else guidance,
        "true_cfg_scale": guidance, "min_guidance_scale": guidance, "max_guidance_scale": guidance,
        "use_resolution_binning": False, "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    arguments |= {"negative_prompt": "flat pizza"} if guidance > 1 else {}
    if "class_labels" in known:
        arguments["class_labels"] = [207]
    elif "prompt" not in known:
        noise = torch.randint(256, (64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        arguments["image"] = Image.fromarray(noise.numpy())
    if hasattr(pipeline, "guider"):  # the guider stores the scale; the call does not take it
        pipeline.guider.guidance_scale = guidance
    with capture(pipeline, rows="all", missing="warn") as captured:
        pipeline(**{name: value for name, value in arguments.items() if name in known})
    return captured.frame()


# Sana warns of linear attention, Lumina 2 of an unknown position of the image tokens.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", [name for name in WHOLE if name not in NOT_GUIDED])
def test_cond_branch_equals_sampling_without_guidance(family):
    pipeline = seeded(lambda: by_family(family))
    pipeline.set_progress_bar_config(disable=True)
    guided = captured_call(family, pipeline, 4.0)
    unguided_scale = 0.0 if family == "Z-Image" else 1.0  # Z-Image applies guidance at scale 1 too
    unguided = captured_call(family, pipeline, unguided_scale)
    assert set(unguided["branch"]) == {"cond"}

    def entropies(frame, branch):
        return frame.loc[(frame["step"] == 0) & (frame["branch"] == branch), "entropy"].to_numpy()

    expected = entropies(unguided, "cond")
    assert np.abs(entropies(guided, "cond") - expected).max() <= 2e-6
    assert np.abs(entropies(guided, "uncond") - expected).max() > 1e-4
    assert set(guided["sample"]) == {0}  # one image or video, also if attention is per frame or per position
    visual = guided[guided["kind"].isin(["self", "joint"])]
    trained = {tokens * TRAINING_FRAMES.get(family, 1) for tokens in TRAINED[family][1] if tokens}
    assert set(visual["training_tokens"].dropna()) == trained


@pytest.mark.parametrize("family", ["AnimateDiff", "Stable Video Diffusion"])
def test_summary_counts_videos_not_frames(family):
    denoiser = of_family(family)
    inputs = next(known for known in FAMILIES if known.name == family).inputs(denoiser, 8, 8)
    with torch.no_grad(), capture(denoiser) as captured:
        denoiser(**inputs)
    assert set(captured.summary()["images"]) == {2}
    frame = captured.frame()
    spatial = frame[frame["axes"] == "spatial"].groupby(["layer", "head", "sample"]).size()
    assert set(spatial) == {3}  # frames


@pytest.fixture(scope="module")
def two_denoisers():
    """Wan 2.2: one denoiser for the noisy steps, one for the others."""
    one = seeded(lambda: by_family("Wan"))
    other = copy.deepcopy(one.transformer)
    for parameter in other.parameters():
        parameter.data *= 1.5
    pipeline = WanPipeline(**one.components | {"transformer_2": other}, boundary_ratio=0.5)
    pipeline.set_progress_bar_config(disable=True)

    def run(height=64):
        generator = torch.Generator().manual_seed(0)
        sides = {"height": height, "width": 64, "num_frames": 9}
        return pipeline("a", **sides, num_inference_steps=4, output_type="latent", generator=generator).frames

    return pipeline, run


def test_two_denoisers_are_measured_together(two_denoisers):
    pipeline, run = two_denoisers
    plain = run()
    with capture(pipeline.transformer) as first, capture(pipeline.transformer_2) as second:
        assert torch.equal(run(), plain)
    with capture(pipeline) as captured:
        assert torch.equal(run(), plain)
    frame = captured.frame()
    of_second = frame["layer"].str.startswith("transformer_2.")
    assert frame["layer"][~of_second].str.startswith("transformer.").all()
    assert sorted(frame["step"].unique()) == [0, 1, 2, 3]
    assert frame["timestep"][~of_second].min() > frame["timestep"][of_second].max()
    assert set(frame["branch"]) == {"cond", "uncond"}
    for own, alone in ((frame[~of_second], first.frame()), (frame[of_second], second.frame())):
        assert own["layer"].str.partition(".")[2].tolist() == alone["layer"].tolist()
        same = ["entropy", "tokens", "head", "kind", "timestep", "branch", "sample"]
        assert own[same].reset_index(drop=True).equals(alone[same])
    assert not any("forward" in part.__dict__ for part in (pipeline.transformer, pipeline.transformer_2))


def test_law_scales_two_denoisers(two_denoisers):
    pipeline, run = two_denoisers
    plain = run(128)
    with scaled(pipeline, "log") as scaling:
        found = run(128)
    assert applied(pipeline) is None
    assert not torch.equal(found, plain)
    table = scaling.frame()
    prefix, layer = (table["layer"].str.partition(".")[part] for part in (0, 2))
    assert set(prefix) == {"transformer", "transformer_2"}
    first, second = (
        dict(zip(layer[prefix == name], table["training_tokens"][prefix == name].astype(int), strict=True))
        for name in ("transformer", "transformer_2")
    )
    with (
        scaled(pipeline.transformer, "log", training_tokens=first),
        scaled(pipeline.transformer_2, "log", training_tokens=second),
    ):
        assert torch.equal(run(128), found)
    with capture(pipeline.transformer), pytest.raises(CaptureError, match="share layers"), capture(pipeline):
        pass


def test_law_is_removed_after_one_denoiser_was_dropped(two_denoisers):
    pipeline, _ = two_denoisers
    second = pipeline.transformer_2
    apply(pipeline, "log")
    try:
        pipeline.transformer_2 = None
        assert applied(pipeline) is not None
        remove(pipeline)
        assert applied(pipeline) is None
    finally:
        pipeline.transformer_2 = second
    assert not any("forward" in part.__dict__ for part in (pipeline.transformer, second))


def test_two_denoisers_have_layers_and_no_export_or_loss(two_denoisers, tmp_path):
    pipeline, _ = two_denoisers
    names = [layer.name for layer in layers(pipeline, (64, 64))]
    assert names == attention_layers(find_denoiser(pipeline))
    with pytest.raises(InputError, match="WanPipeline has two denoisers, and export writes the factors of one"):
        export("paper", "weights", tmp_path / "law", size=(64, 64), model=pipeline)
    with pytest.raises(InputError, match="WanPipeline has two denoisers, each for a part of the noise levels"):
        denoising_loss._conditioning(pipeline, ["a"], (64, 64))
