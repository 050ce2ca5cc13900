"""The manifest and the report of a run name what else changes with the image size."""

import json

import pytest
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from families.pipelines import PIPELINES, seeded

from entropy_probe import sweep
from entropy_probe.models import confounders
from entropy_probe.runs import Manifest


@pytest.fixture(scope="module")
def flux():
    pipeline = seeded(PIPELINES["Flux"])
    pipeline.scheduler.register_to_config(use_dynamic_shifting=True)
    return pipeline


def test_timestep_shift_equals_the_one_of_diffusers(flux, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "diffusers.pipelines.flux.pipeline_flux.calculate_shift",
        lambda *args, **kwargs: seen.append(calculate_shift(*args, **kwargs)) or seen[-1],
    )
    for size in ((64, 32), (128, 128)):
        flux("a", height=size[0], width=size[1], num_inference_steps=1, output_type="latent")
        name = "64x32" if size == (64, 32) else "128"
        assert confounders(flux, [size])["timestep shift mu"] == f"{name}: {seen[-1]:.3f}"


def test_positions_are_named(flux):
    assert confounders(flux, [(64, 64)])["axes_dims_rope"] == str(tuple(flux.transformer.config.axes_dims_rope))


def test_manifest_records_them_and_older_manifests_are_read(flux):
    sampled = sweep(flux, prompts=["a"], sizes=[(64, 64), (64, 32)], seeds=(0,), steps=1, progress=False)
    recorded = sampled.manifest.confounders
    assert recorded == confounders(flux, [(64, 64), (64, 32)])
    assert "64x32: " in recorded["timestep shift mu"]
    text = sampled.manifest.to_json()
    assert Manifest.from_json(text) == sampled.manifest
    fields = json.loads(text)
    del fields["confounders"]
    older = Manifest.from_json(json.dumps(fields))
    assert older.confounders == {}
    assert older.identity() == sampled.manifest.identity()


def test_models_without_them_record_nothing(tiny_pipeline):
    assert confounders(tiny_pipeline, [(64, 64)]) == {}
