"""A run that the same command has finished is recognised, and nothing else is."""

import json
import shutil
import subprocess
import sys

import pytest

from entropy_probe.cli.finished import FILE, finished_messages, mark_finished

SETTINGS = {"sizes": "32,64", "prompts": None, "lora": (), "steps": 2, "quiet": False}
MESSAGES = ["Entropy rises by 0.62 nats when the token count doubles.", "report: run/report.html"]


@pytest.fixture
def run(tmp_path):
    """A finished run, its model and a file of prompts."""
    for name in ("run", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "report.html").write_text("a report")
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "prompts.txt").write_text("one fox\n")
    mark_finished(tmp_path / "run", str(tmp_path / "model"), settings(tmp_path), MESSAGES)
    return tmp_path


def settings(folder, **changed):
    return SETTINGS | {"prompts": str(folder / "prompts.txt")} | changed


def found(folder, run="run", **changed):
    return finished_messages(folder / run, str(folder / "model"), settings(folder, **changed))


def test_finished_run_is_recognised_also_after_it_was_moved(run):
    assert found(run) == MESSAGES
    (run / "run").rename(run / "moved")
    assert found(run, "moved") == MESSAGES


def test_options_that_change_no_result_are_ignored(run):
    assert found(run, quiet=True, as_json=True, config="c.yaml", out="elsewhere") == MESSAGES


@pytest.mark.parametrize("changed", [{"sizes": "32"}, {"steps": 3}, {"lora": ("a.safetensors",)}, {"seeds": "0,1"}])
def test_changed_option_runs_again(run, changed):
    assert found(run, **changed) is None


@pytest.mark.parametrize("file", ["run/report.html", "model/weights.safetensors", "prompts.txt"])
@pytest.mark.parametrize("change", ["written", "deleted"])
def test_changed_file_runs_again(run, file, change):
    path = run / file
    if change == "written":
        path.write_text("something else")
    else:
        path.unlink()
    assert found(run) is None


@pytest.mark.parametrize("folder", ["run", "model"])
def test_new_file_runs_again(run, folder):
    (run / folder / "new").write_text("new")
    assert found(run) is None


@pytest.mark.parametrize("option", ["{}:0.5", "{0}:0.5,{0}:1.0", "other,{}"])
def test_every_lora_file_is_an_input(run, option):
    adapter = run / "lora.safetensors"
    adapter.write_bytes(b"1")
    given = {"lora": option.format(adapter)}
    mark_finished(run / "run", str(run / "model"), settings(run, **given), MESSAGES)
    assert found(run, **given) == MESSAGES
    adapter.write_bytes(b"22")
    assert found(run, **given) is None


def test_image_of_the_pipeline_is_an_input(run):
    """Typer passes it as a path."""
    image = run / "photo.png"
    image.write_bytes(b"1")
    mark_finished(run / "run", str(run / "model"), settings(run, image=image), MESSAGES)
    image.write_bytes(b"22")
    assert found(run, image=image) is None


def test_file_of_arguments_may_name_other_files(run):
    arguments = run / "call.yaml"
    arguments.write_text("strength: 0.5\nmask_image: my mask.png\n")
    (run / "my mask.png").write_bytes(b"1")
    mark_finished(run / "run", str(run / "model"), settings(run, pipeline_kwargs=arguments), MESSAGES)
    assert found(run, pipeline_kwargs=arguments) == MESSAGES
    (run / "my mask.png").write_bytes(b"22")
    assert found(run, pipeline_kwargs=arguments) is None


def test_base_of_a_model_is_an_input(run):
    (run / "base").mkdir()
    given = {"base": str(run / "base")}
    mark_finished(run / "run", str(run / "model"), settings(run, **given), MESSAGES)
    assert found(run, **given) == MESSAGES
    (run / "base" / "config.json").write_text("{}")
    assert found(run, **given) is None


def test_another_version_runs_again(run, monkeypatch):
    monkeypatch.setattr("entropy_probe.cli.finished.__version__", "9.9.9")
    assert found(run) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"messages": 1}', "[" * 100_000, '{"messages": ["x"]}'])
def test_damaged_file_runs_again(run, content):
    (run / "run" / FILE).write_text(content)
    assert found(run) is None


def test_models_and_runs_that_are_not_on_this_machine_are_not_recognised(run):
    assert finished_messages(run / "run", "someone/model", settings(run)) is None
    assert finished_messages("s3://bucket/run", str(run / "model"), settings(run)) is None
    mark_finished(run / "run", "someone/model", settings(run), MESSAGES)  # writes nothing
    assert found(run) == MESSAGES


def test_bundled_model_is_found(run):
    mark_finished(run / "run", "reference", SETTINGS, MESSAGES)
    assert finished_messages(run / "run", "reference", SETTINGS) == MESSAGES
    stored = json.loads((run / "run" / FILE).read_text())
    assert any(name.endswith(".safetensors") for name in stored["inputs"][0])


def test_recognising_a_run_loads_no_large_library(run):
    shutil.rmtree(run / "model")
    code = f"""
import sys
from entropy_probe.cli.finished import finished_messages
finished_messages({str(run / "run")!r}, "reference", {SETTINGS!r})
print({{"torch", "diffusers", "pandas"}} & sys.modules.keys())
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
