"""The bundled models, prompts and drawings."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import entropy_probe as ep
from entropy_probe.bundled import bundled
from entropy_probe.models import REFERENCES, sample_images, training_size, training_tokens
from entropy_probe.reference.drawings import draw as draw_svg


@pytest.fixture(scope="module")
def pipelines():
    return {name: ep.reference.load(name, device="cpu") for name in REFERENCES}


@pytest.mark.parametrize(("name", "max_bytes"), [("reference", 30e6), ("reference-dit", 20e6)])
def test_bundled_models_are_small_and_have_no_pickle(name, max_bytes):
    found = [p for p in bundled(name).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in found) < max_bytes
    assert {p.suffix for p in found} <= {".json", ".safetensors", ".csv", ".md", ".png", ".gz", ".txt"}


@pytest.mark.parametrize(
    ("name", "kind", "tokens"),
    [("reference", "StableDiffusionPipeline", {256, 64}), ("reference-dit", "PixArtAlphaPipeline", {64})],
)
def test_bundled_models_are_diffusers_pipelines_trained_at_64_pixels(pipelines, name, kind, tokens):
    pipeline = pipelines[name]
    assert type(pipeline).__name__ == kind
    assert getattr(pipeline, "safety_checker", None) is None
    assert training_size(pipeline) == (64, 64)
    assert set(training_tokens(pipeline).values()) == tokens


@pytest.mark.parametrize("name", REFERENCES)
def test_image_matches_its_caption(pipelines, name):
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


def test_sampling_needs_no_library_to_clean_captions(pipelines, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    sample_images(pipelines["reference-dit"], ["noto dog"], (64, 64), [0], steps=1, guidance_scale=1.0)
    assert "clean_caption" not in caplog.text


def test_bundled_prompts_are_captions():
    prompts = ep.reference.prompts()
    assert len(prompts) == len(set(prompts)) == 64
    assert all(prompt.split()[0] in ("noto", "flat") for prompt in prompts)


def test_vector_image_is_centred_at_any_size():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><rect width="2" height="2" fill="#f00"/></svg>'
    wide = draw_svg(svg, 20, 40)
    assert wide.shape == (20, 40, 3)
    assert (wide[:, 10:30] == (255, 0, 0)).all()
    assert (wide[:, :10] == 255).all()
    assert (wide[:, 30:] == 255).all()


@pytest.mark.slow
def test_clone_finds_the_prompts_if_the_package_is_not_installed():
    code = "import entropy_probe as ep; print(ep.__file__); print(len(ep.reference.prompts()))"
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    file, count = result.stdout.split()
    assert Path(file) == root / "entropy_probe" / "__init__.py"
    assert int(count) == 64
