"""A run finds its model from any folder, and after the run, or the run and the model, were moved."""

import shutil
import sys

import pytest
from PIL import Image

import entropy_probe as ep
from entropy_probe.cli import main as cli
from entropy_probe.paths import working_folder
from entropy_probe.runs import locate_model

GRID = ("--sizes", "32,64", "--prompts", "2", "--steps", "1", "--device", "cpu", "--quiet")


@pytest.fixture
def command(monkeypatch):
    def run(folder, *arguments):
        monkeypatch.setattr(sys, "argv", ["entropy-probe", *map(str, arguments)])
        with working_folder(folder), pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code

    return run


@pytest.fixture
def project(tiny_folder, tmp_path, command):
    """A folder with a model and a run of it, which was named by a relative path."""
    folder = tmp_path / "project"
    shutil.copytree(tiny_folder, folder / "models" / "tiny")
    assert command(folder, "sweep", "--model", "models/tiny", "--out", "runs/one", *GRID) == 0
    return folder


def test_model_is_recorded_as_absolute_path(project):
    manifest = ep.Sweep.open(project / "runs" / "one").manifest
    assert manifest.model == str(project / "models" / "tiny")
    assert manifest.model_from_run == "../../models/tiny"


def test_moved_run_finds_its_model_from_any_folder(project, tmp_path, command):
    moved = shutil.move(project / "runs" / "one", tmp_path / "elsewhere")
    assert command(tmp_path, "derive", "--out", "elsewhere", "--rounds", 1, "--quiet") == 0
    validate = ("validate", "--laws", "original,measured", "--metrics", "none", "--quiet")
    assert command("/", *validate, "--out", moved) == 0
    assert (tmp_path / "elsewhere" / "outcome.json").is_file()


def test_run_and_model_that_moved_together_are_found(project, tmp_path, command):
    moved = shutil.move(project, tmp_path / "other")
    run = moved / "runs" / "one"
    assert locate_model(run, ep.Sweep.open(run).manifest) == str(moved / "models" / "tiny")
    assert command("/", "derive", "--out", run, "--rounds", 0, "--quiet") == 0


def test_model_that_is_gone_is_named(project, tmp_path, command, capsys):
    shutil.rmtree(project / "models")
    assert command(tmp_path, "derive", "--out", project / "runs" / "one") == 2
    error = capsys.readouterr().err
    assert "unknown model" in error
    assert error.count("\n") == 1


def test_run_keeps_the_images_of_its_arguments(project, tmp_path, command):
    from diffusers import StableDiffusionImg2ImgPipeline

    StableDiffusionImg2ImgPipeline.from_pretrained(project / "models" / "tiny").save_pretrained(project / "edit")
    Image.effect_noise((100, 80), 60).convert("RGB").save(project / "photo.png")
    (project / "call.yaml").write_text("image: photo.png\nstrength: 1.0\n")
    run = ("sweep", "--model", "edit", "--pipeline-kwargs", "call.yaml", "--out", "runs/edit", *GRID)
    assert command(project, *run) == 0
    (project / "photo.png").unlink()
    (project / "call.yaml").unlink()
    moved = shutil.move(project / "runs" / "edit", tmp_path / "moved")
    assert command("/", "validate", "--out", moved, "--laws", "original,paper", "--metrics", "none", "--quiet") == 0
    again = ("sweep", "--config", moved / "config.yaml", "--out", tmp_path / "again", "--quiet")
    assert command("/", *again) == 0
    frames = [ep.Sweep.open(run).frame().drop(columns="law") for run in (moved, tmp_path / "again")]
    assert frames[0].equals(frames[1])
