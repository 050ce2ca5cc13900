"""Damaged models are refused in one line: missing files, other weights, values of a configuration, pickles."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, CLIPTokenizerFast

from benchmarks.json_edits import edits
from entropy_probe import reference
from entropy_probe.baselines import compare
from entropy_probe.errors import InputError
from entropy_probe.evaluation.networks import Clip, Vision, load_scorer
from entropy_probe.models import (
    fingerprint,
    fingerprint_version,
    layers,
    load,
    sample_images,
    sampling_settings,
    training_size,
)
from entropy_probe.runs import Manifest, Sweep, sweep
from research.storage import fingerprint_as_stored
from tests.test_regression import profile_of


@pytest.fixture
def model(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def use(folder):
    """Do with a model what the commands do before and while they sample."""
    pipeline = load(folder, device="cpu")
    sampling_settings(pipeline, 1)
    training_size(pipeline)
    fingerprint(pipeline)
    layers(pipeline)
    return sample_images(pipeline, ["flat pizza"], (32, 32), [0], steps=1, guidance_scale=4.0)


def refusal(folder):
    with pytest.raises(InputError) as refused:
        use(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer/tokenizer.json", "tokenizer lacks tokenizer.json or vocab"),
        ("tokenizer/tokenizer_config.json", "tokenizer lacks tokenizer_config.json"),
        ("text_encoder/config.json", "text_encoder lacks config.json"),
        ("text_encoder/model.safetensors", "no file named model.safetensors"),
        ("tokenizer", "lacks the component 'tokenizer'"),
        ("text_encoder", "lacks the component 'text_encoder'"),
        ("unet", "lacks the component 'unet'"),
        ("scheduler", "lacks the component 'scheduler'"),
        ("model_index.json", "is not a diffusers pipeline, it has no model_index.json"),
    ],
)
def test_missing_file_is_named(model, missing, message):
    path = model / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert message in refusal(model)


WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}  # fmt: skip


@pytest.mark.parametrize("part", WEIGHTS)
def test_renamed_missized_and_truncated_weights_are_refused(model, part):
    path = model / part / WEIGHTS[part]
    intact, weights = path.read_bytes(), load_file(path)
    name = sorted(weights)[0]
    save_file({f"x.{key}" if key == name else key: v for key, v in weights.items()}, path, {"format": "pt"})
    assert f"lacks 1 weights of {type(load_part(model, part)).__name__}" in refusal(model)
    save_file({**weights, name: weights[name].flatten()[:1].clone()}, path, {"format": "pt"})
    assert "shape" in (message := refusal(model))
    assert name.removeprefix("text_model.") in message
    path.write_bytes(intact[: len(intact) // 2])
    assert "cannot load" in refusal(model)
    path.write_bytes(intact)
    assert use(model)[0].size == (32, 32)


def load_part(folder, part):
    """Return an object of the class of a component."""
    library, name = json.loads((folder / "model_index.json").read_text())[part]
    return object.__new__(getattr({"diffusers": diffusers, "transformers": transformers}[library], name))


@pytest.mark.parametrize("value", [1.5, "x", [16], {}, [16, "x"], -1, 0, True, 2**40, float("nan"), [0, 16]])
def test_training_size_that_is_not_a_size_is_refused(model, value):
    path = model / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": value}))
    assert "sample_size" in refusal(model)


@pytest.mark.parametrize("value", [16, [16, 16], [8, 16, 16]])
def test_training_size_can_be_a_number_or_a_list(model, value):
    path = model / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": value}))
    assert training_size(load(model, device="cpu")) == (64, 64)


def test_token_with_a_huge_id_is_refused(model):
    """The tokenizers library allocates memory for all smaller ids when it writes such a vocabulary."""
    path = model / "tokenizer" / "tokenizer.json"
    fields = json.loads(path.read_text())
    vocabulary = fields["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 2**31
    path.write_text(json.dumps(fields))
    assert "has an id of 16777216 or more" in refusal(model)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_edited_configuration_ends_in_an_image_or_in_one_line(tiny_folder, tmp_path, data):
    configs = sorted(p.relative_to(tiny_folder) for p in tiny_folder.rglob("*.json") if p.stat().st_size < 20_000)
    file = data.draw(st.sampled_from(configs))
    changes = list(edits(json.loads((tiny_folder / file).read_text())))
    name, edited = changes[data.draw(st.integers(0, len(changes) - 1))]
    folder = shutil.copytree(tiny_folder, tmp_path / "model", dirs_exist_ok=True)
    (folder / file).write_text(data.draw(st.sampled_from([json.dumps(edited)] * 4 + ["", "{", "[" * 10**5])))
    refused = ""
    try:
        assert use(folder)
    except InputError as error:
        refused = str(error)
    finally:
        shutil.rmtree(folder)
    assert "\n" not in refused, name


# Fingerprints


def change_merges(folder):
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(fields))


def change_vocabulary(folder):
    fields = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = fields["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(fields))


def change_length(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 12}))


def change_text_encoder(folder):
    path = folder.parent / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_eps": 0.5}))


@pytest.mark.parametrize("change", [change_merges, change_vocabulary, change_length])
def test_fingerprint_changes_with_the_tokenizer(model, tiny_pipeline, change):
    assert fingerprint(load(model, device="cpu")) == fingerprint(tiny_pipeline)
    change(model / "tokenizer")
    changed = load(model, device="cpu")
    assert fingerprint(changed) != fingerprint(tiny_pipeline)
    assert fingerprint(changed, version=1) == fingerprint(tiny_pipeline, version=1)


def test_fingerprint_changes_with_the_configuration_of_the_text_encoder(model, tiny_pipeline):
    change_text_encoder(model / "tokenizer")
    assert fingerprint(load(model, device="cpu")) != fingerprint(tiny_pipeline)


@pytest.mark.parametrize("version", [1, 2])
def test_run_with_an_old_fingerprint_is_resumed(tiny_pipeline, tmp_path, version):
    """A run of entropy-probe 0.1.0 has a fingerprint of version 1. Its cells contain the hash of it."""
    grid = {"prompts": ["a"], "sizes": [(64, 64)], "steps": 1, "store": tmp_path / "run", "progress": False}
    new = sweep(tiny_pipeline, **{**grid, "store": tmp_path / "new"})
    old = Manifest(**{**vars(new.manifest), "fingerprint": fingerprint(tiny_pipeline, version)})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(old.to_json())
    sweep(tiny_pipeline, **grid)
    assert sweep(tiny_pipeline, **{**grid, "sizes": [(64, 64), (32, 32)]}).manifest == old
    assert Sweep.open(tmp_path / "run", tiny_pipeline).frame()["entropy"].notna().all()
    assert fingerprint_version(new.manifest.fingerprint) == 3


def test_study_with_an_old_fingerprint_is_resumed(tiny_pipeline, tmp_path):
    assert fingerprint_as_stored(tmp_path, tiny_pipeline) == fingerprint(tiny_pipeline)
    (tmp_path / "settings.json").write_text('{"fingerprint": "0123456789abcdef"}')
    assert fingerprint_as_stored(tmp_path, tiny_pipeline) == fingerprint(tiny_pipeline, version=1)


def test_comparison_says_that_fingerprints_of_two_versions_cannot_be_compared():
    before = profile_of(np.random.default_rng(0).normal(size=(4, 10)))
    now = replace(before, fingerprint="2:0123456789abcdef")
    (difference,) = compare(before, now).other_differences()
    assert difference == "weights not compared: their fingerprints have the versions 1 and 2"


# Networks that score images


@pytest.fixture
def clip_folder(tiny_folder, tmp_path):
    folder = tmp_path / "clip"
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder, max_shard_size="20KB")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("by", ["folder", "hub id"])
def test_network_with_pickled_shards_is_refused(clip_folder, monkeypatch, by):
    asked = []

    def download(name, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        return str(clip_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    name = str(clip_folder) if by == "folder" else "somebody/clip"
    assert Clip.load(name).num_features == 8
    index = clip_folder / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    shard = next(iter(fields["weight_map"]))
    index.write_text(json.dumps({**fields, "weight_map": {**fields["weight_map"], shard: "pytorch_model.bin"}}))
    for read in (Clip.load, Vision.load, lambda name: load_scorer(name, reference.images())):
        with pytest.raises(InputError, match=r"must name only \.safetensors files next to it, got 'pytorch_model.bin'"):
            read(name)
    assert all(name == "somebody/clip" and not any("bin" in p for p in allowed) for name, allowed in asked)
    assert bool(asked) == (by == "hub id")


def test_slow_and_fast_tokenizers_have_fingerprints(tiny_pipeline, tiny_folder):
    found = {
        fingerprint(SimpleNamespace(components={"tokenizer": kind.from_pretrained(tiny_folder / "tokenizer")}))
        for kind in (CLIPTokenizer, CLIPTokenizerFast)
    }
    assert all(fingerprint_version(text) == 3 for text in found)
