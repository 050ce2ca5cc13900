"""Whole pipelines of other families, from a folder on disk: `info`, capture and laws, with nothing told about them."""

import json

import numpy as np
import pytest
import torch
from families.pipelines import PIPELINES, by_family, seeded
from typer.testing import CliRunner

from entropy_probe import capture, scaled
from entropy_probe.capture import attention_layers, find_denoiser
from entropy_probe.cli import app
from entropy_probe.errors import InputError
from entropy_probe.pipelines import draw, layers, training_size

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
    asked = CliRunner().invoke(app, ["info", "--model", str(tmp_path), "--sizes", "64x32", "--json"])
    assert asked.exit_code == 0, asked.stderr
    told = json.loads(asked.stdout)
    assert told["training_size"] == list(SIZES[name]) == list(training_size(pipeline))
    assert {layer["layer"] for layer in told["layers"]} == set(attention_layers(find_denoiser(pipeline)))
    visual = [layer for layer in told["layers"] if layer["kind"] in ("self", "joint")]
    assert {layer["training_tokens"] for layer in visual} == {TOKENS[name]}
    assert {layer["grid at 64x32"] for layer in visual} == {"8x4"}


TRAINED = {
    "unconditional UNet": ([8, 8], {4, 16}),
    "DiT": ([8, 8], {16}),
    "PixArt-Sigma": ([32, 32], {16}),
    "AuraFlow": ([32, 32], {16}),
    "Lumina-Next": ([64, 64], {16}),
    "Chroma": ([512, 512], {64 * 64}),
    "Sana": ([32, 32], set()),
    "CogView3+": ([32, 32], {16}),
    "CogView4": ([32, 32], {16}),
    "Z-Image": (None, {None}),
    "CogVideoX": ([64, 64], {16}),
    "LTX-Video": ([512, 704], {16 * 22}),
}
"""Training size in pixels, and T of the visual layers, by configuration or default size; autoencoders reduce by 4, but
8 in CogVideoX and 32 in LTX-Video."""
ONE_SIZE = {"unconditional UNet", "DiT"}


@pytest.fixture(scope="module")
def pipelines():
    torch.manual_seed(0)
    return by_family()


@pytest.mark.parametrize("family", TRAINED)
def test_info_on_more_families(family, pipelines, tmp_path):
    assert pipelines.keys() == TRAINED.keys()
    size, tokens = TRAINED[family]
    pipelines[family].save_pretrained(tmp_path)
    command = ["info", "--model", str(tmp_path), "--json", *([] if family in ONE_SIZE else ["--sizes", "64x128"])]
    asked = CliRunner().invoke(app, command)
    assert asked.exit_code == 0, asked.stderr
    told = json.loads(asked.stdout)
    assert told["training_size"] == size
    visual = [layer for layer in told["layers"] if layer["kind"] in ("self", "joint")]
    assert {layer["training_tokens"] for layer in visual} == tokens
    shapes = {layer["grid at 64x128"] for layer in visual} if family not in ONE_SIZE else set()
    assert all(int(shape.split("x")[1]) == 2 * int(shape.split("x")[0]) for shape in shapes)


def test_info_asks_for_a_size_where_the_model_tells_none(pipelines, tmp_path):
    pipelines["Z-Image"].save_pretrained(tmp_path)
    asked = CliRunner().invoke(app, ["info", "--model", str(tmp_path)])
    assert isinstance(asked.exception, InputError)
    assert "--sizes 1024" in str(asked.exception)


def test_a_pipeline_of_one_size_is_not_asked_for_another(pipelines):
    with pytest.raises(InputError, match="draws 8 pixels only"):
        layers(pipelines["DiT"], (16, 16))


def test_it_is_captured_and_scaled(name, pipeline):
    def image():
        return np.asarray(draw(pipeline, ["a red apple"], (64, 32), [0], steps=2, guidance_scale=4.0)[0])

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
