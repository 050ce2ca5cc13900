"""Exported laws give the images of `scaled`: as a Python file, and as weights. See also test_comfyui_node.py."""

import copy
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from inspect import unwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.attention_processor import Attention
from families.pipelines import PIPELINES, by_family, seeded
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from entropy_probe import export, scaled
from entropy_probe.attention import find_denoiser
from entropy_probe.cli.main import app
from entropy_probe.errors import InputError
from entropy_probe.laws import Constant, HeadEntropy, Log, Measured, Origin, Paper, save_law, to_json
from entropy_probe.laws.factor_table import factors_of_model, factors_of_origin, origin_of_model
from entropy_probe.laws.scaled_weights import query_weights
from entropy_probe.models import load

SIZE = (96, 64)
ALONE = """
import importlib.util, sys
sys.modules["entropy_probe"] = None  # an import of the package fails
import numpy, torch
from diffusers import StableDiffusionPipeline
spec = importlib.util.spec_from_file_location("law", sys.argv[1])
law = importlib.util.module_from_spec(spec)
spec.loader.exec_module(law)
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[2], safety_checker=None)
def sample():
    generator = torch.Generator().manual_seed(0)
    return pipeline("noto red apple", height=96, width=64, num_inference_steps=3, output_type="np",
                    generator=generator).images
with law.scaled(pipeline):
    image = sample()
numpy.savez(sys.argv[3], scaled=image, original=sample())
"""


def sample(pipeline, size=SIZE, **arguments):
    """Return an image as an array of floats, before it is rounded to 8 bits."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    arguments = {"num_inference_steps": 3, "output_type": "np", "generator": generator, **arguments}
    return pipeline("noto red apple", height=size[0], width=size[1], **arguments).images


def module_of(path):
    spec = importlib.util.spec_from_file_location("exported_law", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_file_gives_the_same_image_in_a_process_without_this_package(tiny_folder, tmp_path):
    pipeline = load(tiny_folder, device="cpu")
    path = export("log", "diffusers", tmp_path / "law.py", size=SIZE, model=pipeline)
    original = sample(pipeline)
    with scaled(pipeline, "log"):
        expected = sample(pipeline)
    (tmp_path / "alone.py").write_text(ALONE)
    command = [sys.executable, str(tmp_path / "alone.py"), str(path), str(tiny_folder), str(tmp_path / "images.npz")]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    found = np.load(tmp_path / "images.npz")
    assert np.array_equal(found["scaled"], expected)
    assert np.array_equal(found["original"], original)  # the law was removed
    assert not np.array_equal(expected, original)


@pytest.mark.parametrize("name", [*PIPELINES, "PixArt-Sigma"])
def test_file_and_weights_give_the_image_of_scaled(name, tmp_path):
    pipeline = seeded(PIPELINES[name] if name in PIPELINES else partial(by_family, name))
    size = (64, 32)
    options = {"use_resolution_binning": False} if name == "PixArt-Sigma" else {}
    original = sample(pipeline, size, **options)
    with scaled(pipeline, Constant(3.0)):
        expected = sample(pipeline, size, **options)
    law = module_of(export(Constant(3.0), "diffusers", tmp_path / "law.py", size=size, model=pipeline))
    with law.scaled(pipeline):
        assert np.array_equal(sample(pipeline, size, **options), expected)
    assert np.array_equal(sample(pipeline, size, **options), original)

    weights = export(Constant(3.0), "weights", tmp_path / "scaled.safetensors", size=size, model=pipeline)
    assert np.array_equal(sample(pipeline, size, **options), original)  # the pipeline is left as it was
    find_denoiser(pipeline).load_state_dict(load_file(weights))
    found = sample(pipeline, size, **options)
    assert np.abs(found - expected).max() < 1e-4 < np.abs(original - expected).max()


def test_weights_give_the_same_image_with_sliced_attention(tiny_pipeline, tmp_path):
    pipeline = copy.deepcopy(tiny_pipeline)
    with scaled(pipeline, "log"):
        expected = sample(pipeline)
    path = export("log", "weights", tmp_path / "unet.safetensors", size=SIZE, model=pipeline)
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["entropy_probe"])
    assert record == {"law": "log", "size": "96x64", "denoiser": "UNet2DConditionModel"}
    pipeline.unet.load_state_dict(load_file(path))
    pipeline.enable_attention_slicing()  # attention that no interception sees
    assert np.abs(sample(pipeline) - expected).max() < 1e-4


@pytest.mark.parametrize("backend", ["_native_math", "flex"])
def test_weights_give_the_same_image_with_another_backend(backend, tmp_path):
    pipeline, size = seeded(PIPELINES["Flux"]), (64, 32)
    with scaled(pipeline, Constant(3.0)):
        expected = sample(pipeline, size)
    path = export(Constant(3.0), "weights", tmp_path / "flux.safetensors", size=size, model=pipeline)
    pipeline.transformer.load_state_dict(load_file(path))
    with torch.no_grad(), attention_backend(backend):
        assert np.abs(sample(pipeline, size) - expected).max() < 1e-4


def test_factors_of_all_tokens_are_exported(tmp_path):
    pipeline, size = seeded(PIPELINES["Flux"]), (64, 32)
    with scaled(pipeline, "log", tokens="all") as scaling:
        expected = sample(pipeline, size)
    image_only = factors_of_model(Log(), pipeline, size)
    path = export("log", "diffusers", tmp_path / "law.py", size=size, model=pipeline, tokens="all")
    module = module_of(path)
    applied = scaling.frame().set_index("layer")
    assert {layer: n for layer, (n, _, _) in module.FACTORS.items()} == applied["tokens"].to_dict()
    assert {layer: g for layer, (_, _, g) in module.FACTORS.items()} == applied["scale_factor"].to_dict()
    assert all(factor.scale_factor != module.FACTORS[factor.layer][2] for factor in image_only)
    with module.scaled(pipeline):
        assert np.array_equal(sample(pipeline, size), expected)
    weights = export("log", "weights", tmp_path / "flux.safetensors", size=size, model=pipeline, tokens="all")
    pipeline.transformer.load_state_dict(load_file(weights))
    assert np.abs(sample(pipeline, size) - expected).max() < 1e-4


def test_all_tokens_need_a_model_and_not_comfyui(tmp_path):
    for to, model in (("diffusers", None), ("comfyui", object())):
        with pytest.raises(InputError, match="tokens='all' needs the model, and cannot be exported to comfyui"):
            export("log", to, tmp_path / "law", size=SIZE, model=model, tokens="all")
    with pytest.raises(InputError, match="tokens must be 'image' or 'all', got 'text'"):
        unwrap(export)("log", "diffusers", tmp_path / "law", size=SIZE, tokens="text")


@pytest.mark.slow
def test_weights_give_the_same_image_after_compiling(tiny_pipeline, tmp_path):
    pipeline = copy.deepcopy(tiny_pipeline)
    with scaled(pipeline, "log"):
        expected = sample(pipeline)
    pipeline.unet.load_state_dict(
        load_file(export("log", "weights", tmp_path / "unet.safetensors", size=SIZE, model=pipeline))
    )
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    assert np.abs(sample(pipeline) - expected).max() < 1e-4


def heads_of(pipeline, size):
    """Return a law with one factor per head."""
    layers = {f.layer: f for f in factors_of_model(Constant(2.0), pipeline, size)}
    denoiser = find_denoiser(pipeline)
    count = {layer: denoiser.get_submodule(layer).heads for layer in layers}
    z = {layer: tuple((n + number) % 5 / 5 for n in range(count[layer])) for number, layer in enumerate(layers)}
    return HeadEntropy(z, g_min=1.0, g_max=3.0)


def test_one_factor_per_head_is_exported(tiny_pipeline, tmp_path):
    pipeline = copy.deepcopy(tiny_pipeline)
    law = heads_of(pipeline, SIZE)
    with scaled(pipeline, law):
        expected = sample(pipeline)
    module = module_of(export(law, "diffusers", tmp_path / "law.py", size=SIZE, model=pipeline))
    with module.scaled(pipeline):
        assert np.array_equal(sample(pipeline), expected)
    original = sample(pipeline)
    path = export(law, "weights", tmp_path / "unet.safetensors", size=SIZE, model=pipeline)
    pipeline.unet.load_state_dict(load_file(path))
    assert np.abs(sample(pipeline) - expected).max() < 1e-4 < np.abs(original - expected).max()
    with pytest.raises(InputError, match="cannot export the head_entropy law to ComfyUI, whose node has one factor"):
        export(law, "comfyui", tmp_path / "node", model=pipeline)


def test_refuses_laws_that_are_not_one_factor(tiny_pipeline, tmp_path):
    with pytest.raises(InputError, match="the time_yarn law changes with the noise level"):
        export("time_yarn", "diffusers", tmp_path / "law.py", size=SIZE, model=tiny_pipeline)
    flux = seeded(PIPELINES["Flux"])
    law = HeadEntropy({"*": (0.1, 0.9)}, g_min=1.0, g_max=3.0)
    with scaled(flux, law):
        expected = sample(flux, (1024, 512), num_inference_steps=1)
    module = module_of(export(law, "diffusers", tmp_path / "law.py", size=(1024, 512), model=flux))
    with module.scaled(flux):
        assert np.array_equal(sample(flux, (1024, 512), num_inference_steps=1), expected)
    with pytest.raises(InputError, match="share the norm of their queries, so weights cannot have one factor per head"):
        export(law, "weights", tmp_path / "flux.safetensors", size=(1024, 512), model=flux)


def test_weights_of_fused_projections_are_scaled(tiny_pipeline, tmp_path):
    pipeline = copy.deepcopy(tiny_pipeline)
    with scaled(pipeline, "log"):
        expected = sample(pipeline)
    pipeline.unet.fuse_qkv_projections()
    pipeline.unet.load_state_dict(
        load_file(export("log", "weights", tmp_path / "unet.safetensors", size=SIZE, model=pipeline))
    )
    assert np.abs(sample(pipeline) - expected).max() < 1e-4


class Odd(nn.Module):
    """A layer whose query is not called to_q."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Module()
        self.attention.q = nn.Linear(4, 4)


def test_refuses_weights_of_a_query_that_cannot_be_scaled_alone():
    layer = nn.Sequential(Attention(8, heads=2, dim_head=4, qk_norm="layer_norm", elementwise_affine=False))
    with pytest.raises(InputError, match=r"0\.norm_q is a norm without weights, so the query cannot be scaled"):
        query_weights(layer, "0")
    with pytest.raises(InputError, match=r"'attention' \(Module\) has no query projection by the name to_q"):
        query_weights(Odd(), "attention")
    layer = nn.Sequential(Attention(8, heads=2, dim_head=4).to("meta"))
    with pytest.raises(InputError, match=r"the weights of 0\.to_q \(Linear\) cannot be scaled: fuse its adapters"):
        query_weights(layer, "0")


def test_refuses_weights_that_do_not_scale_the_logits(tiny_pipeline, tmp_path, monkeypatch):
    pipeline = copy.deepcopy(tiny_pipeline)
    layer = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    monkeypatch.setattr(layer.to_q, "forward", lambda x: nn.functional.normalize(x @ layer.to_q.weight.T, dim=-1))
    with pytest.raises(InputError, match="does not scale its logits by"):
        export("log", "weights", tmp_path / "unet.safetensors", size=SIZE, model=pipeline)
    assert not (tmp_path / "unet.safetensors").exists()


def test_factors_without_the_model_equal_those_of_the_model(tiny_pipeline):
    origin = origin_of_model(tiny_pipeline, "tiny")
    for size in ((96, 64), (40, 72), (64, 64)):
        expected = factors_of_model(Log(), tiny_pipeline, size)
        found = factors_of_origin(Log(), origin, size)
        assert [(f.layer, f.tokens, f.scale_factor) for f in found] == [
            (f.layer, f.tokens, f.scale_factor) for f in expected
        ]


def test_derived_law_is_exported_without_the_model(tiny_pipeline, tmp_path):
    origin = origin_of_model(tiny_pipeline, "tiny")
    points = {layer: ((0.4, 1.3),) for layer in origin.training_tokens}
    save_law(Measured(points, origin=origin), tmp_path / "law.json")
    law = module_of(export(tmp_path / "law.json", "diffusers", tmp_path / "law.py", size=SIZE))
    with scaled(tiny_pipeline, tmp_path / "law.json"):
        expected = sample(tiny_pipeline)
    with law.scaled(tiny_pipeline):
        assert np.array_equal(sample(tiny_pipeline), expected)


def test_file_refuses_other_models_sizes_and_attention(tiny_pipeline, tmp_path):
    law = module_of(export("log", "diffusers", tmp_path / "law.py", size=SIZE, model=tiny_pipeline))
    with pytest.raises(ValueError, match="this is not a model like tiny: it lacks layers such as 'down_blocks"):
        law.apply(nn.Linear(1, 1))
    with (
        law.scaled(tiny_pipeline),
        pytest.raises(ValueError, match=r"tokens instead of 384: .* 96x64 \(height x width\)"),
    ):
        sample(tiny_pipeline, (64, 64))
    with law.scaled(tiny_pipeline), pytest.raises(ValueError, match=r"already has a law: call remove\(\) first"):
        law.apply(tiny_pipeline)
    sliced = copy.deepcopy(tiny_pipeline)
    sliced.enable_attention_slicing()
    with law.scaled(sliced), pytest.raises(RuntimeError, match="did not call torch's scaled_dot_product_attention"):
        sample(sliced)
    assert "forward" not in vars(tiny_pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1)


def test_export_rejects_bad_input(tiny_pipeline, tmp_path):
    out = tmp_path / "law.py"
    for arguments, reason in [
        (("paper", "onnx", out), "to must be diffusers, comfyui, weights, got 'onnx'"),
        (("paper", "diffusers", out), "--to diffusers needs the image size"),
        (("paper", "comfyui", out), "the paper law is not derived on a model: give --model"),
    ]:
        with pytest.raises(InputError, match=reason):
            unwrap(export)(*arguments)  # without the type check of the tests
    with pytest.raises(InputError, match="--to weights needs the model for the paper law"):
        export("paper", "weights", out, size=SIZE)
    with pytest.raises(InputError, match="multiples of 8 pixels"):
        export("paper", "diffusers", out, size=(60, 64), model=tiny_pipeline)
    with pytest.raises(InputError, match="the original law scales no layer of StableDiffusionPipeline"):
        export("original", "diffusers", out, size=SIZE, model=tiny_pipeline)
    with pytest.raises(InputError, match="cannot write"):
        export("paper", "diffusers", tmp_path / "no" / "law.py", size=SIZE, model=tiny_pipeline)
    irregular = Origin("mine", "2:0", "Mine", (64, 64), {"a": 60})
    with pytest.raises(InputError, match="do not follow from its 60 tokens at 64: name the model"):
        factors_of_origin(Log(), irregular, SIZE)


@pytest.mark.parametrize("to", ["diffusers", "comfyui", "weights"])
def test_command_writes_each_target(to, tiny_folder, tmp_path):
    out = tmp_path / "out"
    command = ["export", "paper", "--to", to, "--size", "96x64", "--model", str(tiny_folder), "--out", str(out)]
    result = CliRunner().invoke(app, [*command, "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"law": "paper", "to": to, "file": str(out), "size": "96x64"}
    assert (out / "law.json").is_file() if to == "comfyui" else out.is_file()


def test_commands_count_all_tokens(tmp_path):
    pipeline = seeded(PIPELINES["Flux"])
    for name, parameter in pipeline.transformer.named_parameters():
        if ".norm_q." in name or ".to_out." in name:
            parameter.data *= 20  # attention that changes the image by more than its rounding
    pipeline.save_pretrained(tmp_path / "flux")
    model = ["--model", str(tmp_path / "flux"), "--device", "cpu", "--quiet"]
    images = {}
    for tokens in ("image", "all"):
        out = tmp_path / tokens
        command = ["sample", "a", "--sizes", "64x32", "--steps", "1", "--law", "log_power=20", "--tokens", tokens]
        result = CliRunner().invoke(app, [*command, "--out", str(out), *model])
        assert result.exit_code == 0, result.output
        (path,) = out.iterdir()
        images[tokens] = path.read_bytes()
    assert images["image"] != images["all"]
    command = ["export", "paper", "--to", "diffusers", "--size", "64x32", "--tokens", "all"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "law.py"), *model])
    assert result.exit_code == 0, result.output
    expected = factors_of_model(Paper(), pipeline, (64, 32), "all")
    found = module_of(tmp_path / "law.py").FACTORS
    assert {layer: g for layer, (_, _, g) in found.items()} == {one.layer: one.scale_factor for one in expected}
    result = CliRunner().invoke(app, ["sample", "a", "--tokens", "text", *model])
    assert "tokens must be 'image' or 'all', got 'text'" in str(result.exception)


def test_exported_file_names_no_path_of_this_machine(tiny_folder, tmp_path):
    path = export("paper", "diffusers", tmp_path / "law.py", size=SIZE, model=load(tiny_folder, device="cpu"))
    assert str(Path(tiny_folder).parent) not in path.read_text()
    origin = origin_of_model(load(tiny_folder, device="cpu"), "tiny")
    assert json.loads(to_json(Log(), origin=replace(origin, weights=())))["origin"]["model"] == "tiny"
