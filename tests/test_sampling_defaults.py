"""Default steps and guidance scale of a pipeline."""

import shutil

import pytest

import entropy_probe as ep
from entropy_probe.errors import InputError
from entropy_probe.models import REFERENCES, SamplingDefaults, load, sampling_defaults


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize("name", REFERENCES)
def test_bundled_models_define_eight_steps_and_guidance_four(name):
    pipeline = ep.reference.load(name, device="cpu")
    assert sampling_defaults(pipeline) == SamplingDefaults(8, 4.0)


def test_file_in_model_folder_comes_first_also_after_a_change_of_directory(folder, monkeypatch):
    (folder / "sampling.json").write_text('{"steps": 12, "guidance_scale": 2}')
    monkeypatch.chdir(folder.parent)
    pipeline = load("./model", device="cpu")
    monkeypatch.chdir("/")
    assert sampling_defaults(pipeline) == SamplingDefaults(12, 2.0)


def test_pipeline_class_comes_second(tiny_pipeline):
    assert sampling_defaults(tiny_pipeline) == SamplingDefaults(50, 7.5)  # StableDiffusionPipeline.__call__


def test_pipelines_without_defaults_get_eight_steps_and_guidance_four():
    class Pipeline:
        def __call__(self, prompt, num_inference_steps=None, *, timesteps=None):
            """Has a number for neither setting."""

    assert sampling_defaults(Pipeline()) == SamplingDefaults(8, 4.0)


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
