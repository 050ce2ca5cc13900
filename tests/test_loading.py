"""Ways to load a model: variants, the dtype of the checkpoint, single files, LoRA, offloading, Python functions."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline
from families.pipelines import flux
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from entropy_probe.errors import InputError
from entropy_probe.models import LoadingOptions, ModelSource, fingerprint, load, sample_images
from entropy_probe.models.adapters import parse_adapter
from entropy_probe.models.dtypes import saved_dtype
from entropy_probe.models.loading import check_offload, place
from entropy_probe.paths import working_folder

BUILDER = """
from entropy_probe.models import load
def build():
    pipeline = load({folder!r}, device="cpu")
    return pipeline
def number():
    return 3
def broken():
    raise KeyError("no weights")
"""


def sampled(pipeline):
    return np.asarray(sample_images(pipeline, ["flat pizza"], (32, 32), [0], steps=1, guidance_scale=4.0)[0])


def dtypes(pipeline):
    return {
        weight.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for weight in part.parameters()
    }


@pytest.fixture
def model(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_auto_is_the_dtype_in_which_the_checkpoint_was_saved(tiny_folder, tmp_path, dtype):
    StableDiffusionPipeline.from_pretrained(tiny_folder).to(dtype).save_pretrained(tmp_path / "saved")
    assert saved_dtype(tmp_path / "saved") == dtype
    assert dtypes(load(tmp_path / "saved", device="cpu")) == {dtype}
    assert dtypes(load(tmp_path / "saved", device="cpu", dtype="float32")) == {torch.float32}


def test_bundled_model_is_computed_in_float32_on_the_cpu():
    assert dtypes(load("reference", device="cpu")) == {torch.float32}


def test_variant_is_loaded(tiny_folder, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.save_pretrained(tmp_path / "both")
    with torch.no_grad():
        pipeline.unet.conv_in.bias.add_(1)
    pipeline.to(torch.float16).save_pretrained(tmp_path / "both", variant="fp16")
    plain, variant = load(tmp_path / "both", device="cpu"), load(tmp_path / "both", device="cpu", variant="fp16")
    assert dtypes(plain) == {torch.float32}
    assert dtypes(variant) == {torch.float16}
    assert torch.allclose(variant.unet.conv_in.bias.float(), plain.unet.conv_in.bias + 1, atol=1e-3)
    with pytest.raises(InputError, match=r"has no weights of the variant 'ema': its variants are fp16"):
        load(tmp_path / "both", device="cpu", variant="ema")
    with pytest.raises(InputError, match=r"has no weights of the variant 'ema': it has no variants, leave it out"):
        load(tiny_folder, device="cpu", variant="ema")


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("flux") / "flux"
    flux().save_pretrained(folder)
    return folder


def test_denoiser_is_loaded_from_a_single_file(flux_folder, tmp_path):
    weights = load_file(flux_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    changed = {name: values + 0.01 for name, values in weights.items()}
    save_file(changed, tmp_path / "tuned.safetensors")
    pipeline = load(tmp_path / "tuned.safetensors", device="cpu", base=str(flux_folder))
    assert isinstance(pipeline.transformer, FluxTransformer2DModel)
    assert all(torch.equal(values, changed[name]) for name, values in pipeline.transformer.state_dict().items())
    assert fingerprint(pipeline) != fingerprint(load(flux_folder, device="cpu"))
    lost = sorted(changed)[0]
    save_file({name: values for name, values in changed.items() if name != lost}, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=rf"lacks 1 weights of FluxTransformer2DModel.*{re.escape(lost)}"):
        load(tmp_path / "part.safetensors", device="cpu", base=str(flux_folder))


def test_options_that_do_not_belong_to_the_model_are_refused(tiny_folder, tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights")
    for model, options, message in [
        (tiny_folder, {"base": "reference"}, "base is only for a file of safetensors, got 'reference'"),
        (tmp_path / "text.safetensors", {"variant": "fp16"}, "variant is for a folder or hub id|variant is only"),
        (tmp_path / "text.safetensors", {"base": str(tiny_folder)}, "cannot read .* as safetensors"),
        (tiny_folder, {"offload": "disk"}, "offload must be model or sequential, got 'disk'"),
        (tiny_folder, {"offload": "model"}, "offload moves weights to a GPU, got 'model' with the device cpu"),
        (tiny_folder, {"lora": ["no.safetensors"]}, "cannot read the LoRA 'no.safetensors'"),
    ]:
        with pytest.raises(InputError, match=message) as refused:
            load(model, device="cpu", **options)
        assert "\n" not in str(refused.value)


def save_lora(pipeline, folder, layers=("to_q", "to_k")):
    """Save a LoRA of the denoiser with random weights."""
    torch.manual_seed(1)
    pipeline.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=list(layers)))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
    return folder / "pytorch_lora_weights.safetensors"


def test_lora_changes_the_image_by_its_scale(tiny_folder, tmp_path):
    file = save_lora(load(tiny_folder, device="cpu"), tmp_path)
    plain = load(tiny_folder, device="cpu")
    own = load(tiny_folder, device="cpu")
    own.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="own")
    own.set_adapters(["own"], [0.5])
    images = {scale: sampled(load(tiny_folder, device="cpu", lora=[f"{file}:{scale}"])) for scale in (0, 0.5, 1)}
    assert np.array_equal(images[0], sampled(plain))
    assert np.array_equal(images[0.5], sampled(own))
    assert np.array_equal(images[1], sampled(load(tiny_folder, device="cpu", lora=[str(tmp_path)])))
    assert not np.array_equal(images[1], images[0.5])
    assert fingerprint(load(tiny_folder, device="cpu", lora=[str(file)])) != fingerprint(plain)


def test_lora_of_another_model_is_refused(tiny_folder, flux_folder, tmp_path):
    file = save_lora(load(tiny_folder, device="cpu"), tmp_path)
    weights = load_file(file)
    save_file({f"unet.other.{name}": values for name, values in weights.items()}, tmp_path / "other.safetensors")
    for model, path in ((tiny_folder, tmp_path / "other.safetensors"), (flux_folder, file)):
        with pytest.raises(InputError, match=r"LoRA .* does not fit to|cannot load the LoRA") as refused:
            load(model, device="cpu", lora=[str(path)])
        assert "\n" not in str(refused.value)


def test_scale_of_a_lora_is_read(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"")
    assert parse_adapter(str(file)).scale == 1
    assert parse_adapter(f"{file}:0.8").scale == 0.8
    assert parse_adapter(f"{file}:-1").scale == -1
    with pytest.raises(InputError, match="cannot read the LoRA"):
        parse_adapter(f"{file}:strong")


@pytest.fixture
def builder(tiny_folder, tmp_path):
    (tmp_path / "my_tiny_models.py").write_text(BUILDER.format(folder=str(tiny_folder)))
    with working_folder(tmp_path):
        yield "my_tiny_models"
    sys.modules.pop("my_tiny_models", None)


def test_function_returns_the_model(builder, tiny_pipeline):
    assert np.array_equal(sampled(load(f"{builder}:build", device="cpu")), sampled(tiny_pipeline))
    assert load(f"{builder}:build", device="cpu", dtype="bfloat16").unet.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("number", "must return a pipeline, got int"),
        ("broken", "KeyError: 'no weights'"),
        ("none", "has no attribute 'none'"),
    ],
)
def test_function_that_returns_no_pipeline_is_refused(builder, function, message):
    with pytest.raises(InputError, match=message) as refused:
        load(f"{builder}:{function}", device="cpu")
    assert "\n" not in str(refused.value)


def test_source_loads_with_its_options(tiny_folder, tmp_path):
    file = save_lora(load(tiny_folder, device="cpu"), tmp_path)
    source = ModelSource(str(tiny_folder), LoadingOptions(lora=(str(file),)))
    assert fingerprint(source.load(device="cpu")) == fingerprint(load(tiny_folder, device="cpu", lora=[str(file)]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_model_gives_the_same_image(tiny_folder, offload):
    plain = sampled(load(tiny_folder, device="cuda"))
    pipeline = load(tiny_folder, device="cuda", offload=offload)
    assert np.abs(sampled(pipeline).astype(int) - plain).max() <= 2
    assert fingerprint(pipeline) == fingerprint(load(tiny_folder, device="cpu"))


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_pipeline_is_offloaded_by_its_own_method(offload):
    class Pipeline:
        def enable_model_cpu_offload(self, device):
            self.called = "model", device

        def enable_sequential_cpu_offload(self, device):
            self.called = "sequential", device

    assert place(Pipeline(), "cuda", offload).called == (offload, "cuda")
    with pytest.raises(InputError, match="object does not support offload"):
        place(object(), "cuda", offload)
    check_offload(offload, "cuda")


def test_missing_weights_of_a_text_encoder_outside_transformers_are_an_error(tmp_path):
    """The text encoder of Kolors is a class of a folder of diffusers' pipelines."""
    from families.pipelines import by_family

    torch.manual_seed(0)
    by_family("Kolors").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["text_encoder"][0] == "kolors"
    load(tmp_path, device="cpu")
    (file,) = (tmp_path / "text_encoder").glob("*.safetensors")
    weights = load_file(file)
    lost = next(name for name in weights if name.endswith("dense.weight"))
    save_file({name: values for name, values in weights.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(InputError, match=rf"lacks 1 weights of ChatGLMModel.*{re.escape(lost)}"):
        load(tmp_path, device="cpu")
