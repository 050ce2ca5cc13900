"""The package on a GPU, if there is one, else on the CPU: images, entropies, laws, sweeps, offloading and losses."""

import numpy as np
import pytest
import torch

import entropy_probe as ep
from entropy_probe.models import sample_images
from entropy_probe.reference import prompts

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sample(pipeline, size=64, steps=2):
    images = sample_images(pipeline, list(prompts()[:2]), (size, size), [0, 1], steps=steps, guidance_scale=4.0)
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module", params=["reference", "reference-dit"])
def pipeline(request):
    return ep.load(request.param, device=DEVICE, dtype="float32")


@pytest.mark.parametrize("rows", ["all", "auto", 64])
def test_capture_leaves_images_bit_identical(pipeline, rows):
    plain = sample(pipeline, 128)
    with ep.capture(pipeline, rows=rows, scale_factors=(0.8, 1.25)) as captured:
        seen = sample(pipeline, 128)
    assert (plain == seen).all()
    assert np.isfinite(captured.frame()["entropy"]).all()


def test_entropies_equal_those_of_the_cpu(pipeline):
    on_cpu = ep.load(pipeline.config._name_or_path, device="cpu", dtype="float32")
    found = []
    for model in (pipeline, on_cpu):
        with ep.capture(model, rows="all") as captured:
            sample(model, steps=1)
        found.append(captured.frame())
    columns = ["layer", "step", "branch", "kind", "tokens", "training_tokens"]
    assert found[0][columns].equals(found[1][columns])
    assert np.abs(found[0]["entropy"] - found[1]["entropy"]).max() < 1e-2  # convolutions in TF32 differ by about 1e-3


def test_half_precision_is_captured():
    for dtype in ("bfloat16", "float16"):
        model = ep.load("reference", device=DEVICE, dtype=dtype)
        plain = sample(model)
        with ep.capture(model) as captured:
            assert (sample(model) == plain).all()
        assert captured.frame()["entropy"].gt(0).all()


def test_law_changes_images_and_leaves_no_trace(pipeline):
    plain = sample(pipeline, 128)
    with ep.scaled(pipeline, "paper") as scaling:
        changed = sample(pipeline, 128)
    assert (changed != plain).any()
    assert scaling.frame()["scale_factor"].gt(1).all()
    assert not scaling.unscaled
    assert (sample(pipeline, 128) == plain).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="nothing is offloaded on a CPU")
@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_model_is_captured_and_scaled(method):
    model = ep.load("reference", device="cpu", dtype="float32")
    getattr(model, method)()
    plain = sample(model)
    with ep.capture(model) as captured, ep.scaled(model, "original"):
        assert (sample(model) == plain).all()
    assert len(captured.frame())


def test_sweep_fit_and_derived_law(pipeline, tmp_path):
    sizes = [(32, 32), (64, 64), (128, 128)]
    found = ep.sweep(pipeline, prompts=prompts()[:2], sizes=sizes, steps=2, store=tmp_path / "run", progress=False)
    assert ep.fit(found).pooled.slope > 0
    factors = ep.derive(found, rounds=0, hold_out=False, progress=False).factors
    assert factors["scale_factor"].gt(0).all()
    assert len(list((tmp_path / "run").rglob("*.png"))) == 6
