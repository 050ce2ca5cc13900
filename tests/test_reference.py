"""The bundled model and the parts of its recipe that need no download."""

import math
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import entropy_probe as ep
from entropy_probe.models import REFERENCES, sample_images, training_size, training_tokens
from entropy_probe.reference.drawings import draw as draw_svg
from recipes.emoji_download import _kept
from recipes.emoji_loop import batch, rate_at
from recipes.emoji_unet import SHARPER, Recipe, _sharpening, train_tokenizer, velocity


@pytest.fixture(scope="module")
def pipelines():
    return {name: ep.reference.load(name, device="cpu") for name in REFERENCES}


@pytest.mark.parametrize(("name", "most"), [("reference", 30e6), ("reference-dit", 20e6)])
def test_the_checkpoints_are_small_and_hold_no_pickle(name, most):
    found = [p for p in Path(str(files("entropy_probe.data") / name)).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in found) < most
    assert {p.suffix for p in found} <= {".json", ".safetensors", ".csv", ".md", ".png", ".gz"}


@pytest.mark.parametrize(
    ("name", "kind", "tokens"),
    [("reference", "StableDiffusionPipeline", {256, 64}), ("reference-dit", "PixArtAlphaPipeline", {64})],
)
def test_they_are_pipelines_of_diffusers_trained_at_64_pixels(pipelines, name, kind, tokens):
    pipeline = pipelines[name]
    assert type(pipeline).__name__ == kind
    assert getattr(pipeline, "safety_checker", None) is None
    assert training_size(pipeline) == (64, 64)
    assert set(training_tokens(pipeline).values()) == tokens


@pytest.mark.parametrize("name", REFERENCES)
def test_the_caption_decides_what_is_drawn(pipelines, name):
    captions = ["noto red apple", "flat eggplant", "noto carrot", "flat broccoli"]
    images = sample_images(pipelines[name], captions, (64, 64), [0] * 4, steps=12, guidance_scale=4.0)
    colours = []
    for image in images:
        pixels = np.asarray(image, dtype=float).reshape(-1, 3)
        colours.append(pixels[pixels.min(1) < 200].mean(0))
    (red, green, blue), eggplant, carrot, broccoli = colours
    assert red > 1.5 * max(green, blue)
    assert eggplant[2] > 1.2 * eggplant[1]
    assert carrot[0] > 1.2 * carrot[2]
    assert broccoli[1] > max(broccoli[0], broccoli[2])


def test_bundled_prompts_are_captions():
    prompts = ep.reference.prompts()
    assert len(prompts) == len(set(prompts)) == 64
    assert all(prompt.split()[0] in ("noto", "flat") for prompt in prompts)


def test_vectors_are_drawn_at_any_size_and_centred():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><rect width="2" height="2" fill="#f00"/></svg>'
    wide = draw_svg(svg, 20, 40)
    assert wide.shape == (20, 40, 3)
    assert (wide[:, 10:30] == (255, 0, 0)).all()
    assert (wide[:, :10] == 255).all()
    assert (wide[:, 30:] == 255).all()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("red-apple", True), ("black-medium-square", True), ("light-bulb", True), ("person-surfing", True),
        ("man-surfing", False), ("waving-hand-medium-dark", False), ("keycap-5", False), ("two-oclock", False),
        ("letter-a", False), ("family-man-boy", False),
    ],
)  # fmt: skip
def test_variants_are_left_out_of_the_training_set(name, kept):
    names = {"red-apple", "black-medium-square", "light-bulb", "person-surfing", "waving-hand"}
    assert _kept(name, names) is kept


def test_an_epoch_shows_every_image_once_and_is_the_same_when_resumed():
    chosen = torch.arange(100, 112)
    epoch = torch.cat([batch(chosen, 4, step, 0) for step in range(3)])
    assert sorted(epoch.tolist()) == chosen.tolist()
    assert not torch.equal(epoch, torch.cat([batch(chosen, 4, step, 0) for step in range(3, 6)]))
    assert torch.equal(batch(chosen, 4, 5, 0), batch(chosen, 4, 5, 0))


def test_the_velocity_gives_image_and_noise_back():
    latents, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    alpha = torch.tensor(0.3).expand(2, 1, 1, 1)
    noisy, target = velocity(latents, noise, alpha)
    assert torch.allclose(alpha.sqrt() * noisy - (1 - alpha).sqrt() * target, latents, atol=1e-6)
    assert torch.allclose((1 - alpha).sqrt() * noisy + alpha.sqrt() * target, noise, atol=1e-6)


def test_the_rate_warms_up_holds_and_falls_to_zero():
    def rates(*steps):
        return [rate_at(step, cycles=(1000, 500), warmup=100, decay=0.2) for step in steps]

    assert rates(0, 99, 500, 900) == pytest.approx([0.01, 1, 1, 0.5])
    assert rates(1000, 1300, 1450, 1500) == pytest.approx([0.01, 1, 0.5, 0])


def test_a_resumed_training_keeps_its_tokenizer(tmp_path):
    first = train_tokenizer(tmp_path, ["noto red apple", "flat pizza"], Recipe())
    again = train_tokenizer(tmp_path, ["quite other captions"], Recipe())
    assert first("flat red apple").input_ids == again("flat red apple").input_ids


def test_layers_are_sharpened_to_half_of_the_greatest_entropy():
    entropy = {"diffuse": [4.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1], "sharp": [1.0] * 7}
    rows = [(layer, g, h, math.exp(4)) for layer, hs in entropy.items() for g, h in zip(SHARPER, hs, strict=True)]
    means = pd.DataFrame(rows, columns=["layer", "scale_factor", "entropy", "key_tokens"])
    gains = _sharpening(means.set_index(["layer", "scale_factor"]), Recipe(sharpen_to=0.5))
    assert gains == pytest.approx({"diffuse": 2.0})


def test_a_clone_finds_them_too_where_the_package_is_installed_elsewhere():
    code = "import entropy_probe as ep; print(ep.__file__); print(len(ep.reference.prompts()))"
    root = Path(__file__).parents[1]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    file, count = said.stdout.split()
    assert Path(file) == root / "entropy_probe" / "__init__.py"
    assert int(count) == 64
