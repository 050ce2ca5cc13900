"""Default steps and guidance scale of a pipeline."""

import shutil

import pytest

import entropy_probe as ep
from entropy_probe.errors import InputError
from entropy_probe.models import REFERENCES, SamplingSettings, load, sampling_defaults, sampling_settings


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize("name", REFERENCES)
def test_bundled_models_define_eight_steps_and_guidance_four(name):
    pipeline = ep.reference.load(name, device="cpu")
    assert sampling_defaults(pipeline) == SamplingSettings(8, 4.0)


def test_file_in_model_folder_comes_first_also_after_a_change_of_directory(folder, monkeypatch):
    (folder / "sampling.json").write_text('{"steps": 12, "guidance_scale": 2}')
    monkeypatch.chdir(folder.parent)
    pipeline = load("./model", device="cpu")
    monkeypatch.chdir("/")
    assert sampling_defaults(pipeline) == SamplingSettings(12, 2.0)


def test_pipeline_class_comes_second(tiny_pipeline):
    assert sampling_defaults(tiny_pipeline) == SamplingSettings(50, 7.5)  # StableDiffusionPipeline.__call__


def test_pipelines_without_defaults_get_eight_steps_and_guidance_four():
    class Pipeline:
        def __call__(self, prompt, num_inference_steps=None, *, timesteps=None):
            """Has a number for neither setting."""

    assert sampling_defaults(Pipeline()) == SamplingSettings(8, 4.0)


def test_given_settings_replace_the_defaults_one_by_one(tiny_pipeline):
    assert sampling_settings(tiny_pipeline) == SamplingSettings(50, 7.5)
    assert sampling_settings(tiny_pipeline, steps=2) == SamplingSettings(2, 7.5)
    assert sampling_settings(tiny_pipeline, guidance_scale=0) == SamplingSettings(50, 0.0)


@pytest.mark.parametrize("given", [{"steps": 0}, {"steps": 1001}, {"guidance_scale": -1.0}])
def test_rejects_settings_that_the_pipeline_cannot_sample(tiny_pipeline, given):
    with pytest.raises(InputError, match=f"must be .* got {next(iter(given.values()))}"):
        sampling_settings(tiny_pipeline, **given)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"steps": 0, "guidance_scale": 4.0}', "'steps' must be greater than or equal to 1, got 0"),
        ('{"steps": 8}', "'guidance_scale'"),
        ('{"steps": 8, "guidance_scale": 4.0, "cfg": 1}', "'cfg'"),
        ("8", "sampling.json"),
    ],
)
def test_rejects_invalid_file_and_names_the_field(folder, text, reason):
    (folder / "sampling.json").write_text(text)
    pipeline = load(folder, device="cpu")
    with pytest.raises(InputError, match=f"sampling.json: .*{reason}" if text != "8" else reason):
        sampling_defaults(pipeline)
