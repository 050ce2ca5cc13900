"""Missing weights are an error. Bundled and newly saved models have names that all versions of transformers read."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from entropy_probe.bundled import bundled
from entropy_probe.errors import InputError
from entropy_probe.evaluation.networks import Vision
from entropy_probe.models import load, load_complete
from recipes.portable import make_portable

MODELS = [bundled(name) for name in ("critic", "reference", "reference-dit")]
MODELS += sorted((Path(__file__).parents[1] / "data").glob("scenes-*"))


def without(weights, *names):
    """Remove weights from a file."""
    tensors = load_file(weights)
    for name in names:
        del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny pipeline."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


def names_in(weights):
    with safe_open(weights, "pt") as file:
        return list(file.keys())


def test_missing_weights_of_a_text_encoder_are_an_error(folder):
    weights = folder / "text_encoder" / "model.safetensors"
    lost = [name for name in names_in(weights) if "fc1" in name]
    without(weights, *lost)
    with pytest.raises(InputError, match="lacks 2 weights of CLIPTextModel, which would be random: ") as error:
        load(folder, device="cpu")
    assert all(name.removeprefix("text_model.") in str(error.value) for name in lost)
    assert "Save the complete model again" in str(error.value)


def test_missing_weights_of_a_denoiser_are_an_error(folder):
    without(folder / "unet" / "diffusion_pytorch_model.safetensors", "conv_in.bias")
    with pytest.raises(InputError, match=r"conv_in\.bias"):
        load(folder, device="cpu")


def test_error_names_the_version_that_saved_the_weights(folder):
    weights, config = folder / "text_encoder" / "model.safetensors", folder / "text_encoder" / "config.json"
    without(weights, names_in(weights)[0])
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_version": "99.1.0"}))
    with pytest.raises(InputError, match=r"Install transformers 99\.1\.0, which saved it, instead of"):
        load(folder, device="cpu")


def test_missing_weights_of_an_image_network_are_an_error(tmp_path):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"pooler\.dense\.bias, pooler\.dense\.weight"):
        Vision.load(str(tmp_path))


def test_settings_are_passed_to_the_library(tiny_folder):
    unet = load_complete(UNet2DConditionModel, tiny_folder / "unet")
    assert isinstance(unet, UNet2DConditionModel)


@pytest.mark.parametrize(
    "config",
    [config for folder in MODELS for config in sorted(folder.rglob("config.json"))],
    ids=lambda path: f"{path.parents[1].name}-{path.parent.name}",
)
def test_bundled_text_encoders_have_the_prefix_that_all_versions_read(config):
    if json.loads(config.read_text()).get("model_type") == "clip_text_model":
        names = names_in(config.parent / "model.safetensors")
        assert all(name.startswith(("text_model.", "text_projection.")) for name in names)


@pytest.mark.parametrize("folder", [folder / "tokenizer" for folder in MODELS], ids=lambda folder: folder.parent.name)
def test_bundled_tokenizers_have_the_files_of_old_versions(folder, tmp_path):
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    assert json.loads((folder / "vocab.json").read_text()) == model["vocab"]
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(folder / file, tmp_path)
    texts = ["noto red apple", "3 red circles and 2 blue squares on green", "it's 42% \u00fc?"]
    complete = CLIPTokenizer.from_pretrained(folder)
    old = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert old(texts).input_ids == complete(texts).input_ids


def test_portable_pipeline_keeps_its_embeddings(folder):
    weights = folder / "text_encoder" / "model.safetensors"
    tokens = torch.tensor([[0, 5, 6, 1]])
    before = CLIPTextModel.from_pretrained(folder / "text_encoder")(tokens).last_hidden_state
    make_portable(folder)
    written = weights.read_bytes()
    make_portable(folder)
    assert weights.read_bytes() == written
    assert all(re.match(r"text_model\.", name) for name in names_in(weights))
    after = load(folder, device="cpu").text_encoder(tokens).last_hidden_state
    assert torch.equal(before, after)
