"""The command line as people and programs meet it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

import entropy_probe as ep
from entropy_probe import cli

GRID = ["--sizes", "64,32x48", "--seeds", "0", "--steps", "2", "--guidance-scale", "4", "--device", "cpu"]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line; returns the exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["entropy-probe", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("noto red apple\n\nflat pizza\n")
    return path


BAD = {
    "unknown model": (["--model", "/nowhere/at/all"], "there is no folder"),
    "no size the autoencoder divides": (["--sizes", "64,50"], "multiples of 8"),
    "size zero": (["--sizes", "0"], "must be positive"),
    "size negative": (["--sizes", "64x-32"], "must be positive"),
    "no size": (["--sizes", "big"], "HEIGHTxWIDTH"),
    "steps zero": (["--steps", "0"], "steps must be at least 1, not 0"),
    "steps no number": (["--steps", "many"], "--steps"),
    "seed negative": (["--seeds", "-1"], "seeds must not be negative"),
    "seeds no numbers": (["--seeds", "x"], "whole numbers"),
    "no prompts": (["--prompts", "0"], "prompts must be at least 1"),
    "no prompts file": (["--prompts", "nowhere.txt"], "cannot read the prompts file"),
    "too many prompts": (["--prompts", "100000"], "bundled prompts"),
    "unknown law": (["--laws", "original,magic"], "unknown law 'magic': give original, paper"),
    "no law": (["--laws", ","], "list of laws is empty"),
    "rows zero": (["--rows", "0"], "rows must be all, auto"),
    "more steps than the schedule has": (["--steps", "1001"], "steps must be at least 1 and at most 1000, not 1001"),
    "guidance that is no number": (["--guidance-scale", "nan"], "the guidance scale must be 0 or more, not nan"),
    "negative guidance": (["--guidance-scale", "-1"], "the guidance scale must be 0 or more, not -1"),
    "a law twice": (["--laws", "paper,paper"], "the list of laws holds 'paper' twice"),
    "the training size alone": (["--sizes", "64"], "a law in N needs another size"),
    "unknown device": (["--device", "tpu"], "device 'tpu' is not available"),
    "unknown dtype": (["--dtype", "int8"], "dtype must be"),
    "the critic on a foreign model": (["--metrics", "critic"], "knows the drawings of the bundled models only"),
    "a judge without pictures": (["--metrics", "some/clip"], "give a folder of them with --images"),
    "no folder of pictures": (["--metrics", "critic", "--images", "/nowhere"], "no folder of pictures '/nowhere'"),
    "unknown option": (["--colour", "red"], "No such option"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(call, tiny_folder, tmp_path, case):
    arguments, message = BAD[case]
    code, out, err = call("run", "--model", tiny_folder, "--out", tmp_path / "run", *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_an_empty_prompts_file_is_refused(call, tiny_folder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    code, _, err = call("run", "--model", tiny_folder, "--out", tmp_path / "run", "--prompts", tmp_path / "empty.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert "is empty: write one prompt a line" in err


def test_a_folder_that_is_no_run_or_cannot_be_written_is_refused(call, tiny_folder, tmp_path, prompts):
    for stage in ("fit", "derive", "validate", "report"):
        code, _, err = call(stage, "--out", tmp_path)
        assert (code, err.count("\n")) == (2, 1)
        assert "no run directory" in err
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    code, _, err = call("sweep", "--model", tiny_folder, "--out", out, "--prompts", prompts, "--quiet", *GRID)
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot write" in err


def test_the_stages_make_a_report(call, tiny_folder, tmp_path, prompts):
    out = tmp_path / "run"
    code, text, err = call("sweep", "--model", tiny_folder, "--out", out, "--prompts", prompts, "--json", *GRID)
    assert (code, err) == (0, "")
    assert json.loads(text)["cells"] == 4
    code, text, _ = call("fit", "--out", out, "--json")
    assert code == 0
    assert json.loads(text)["layers"][-1]["layer"] == "(pooled)"
    assert call("validate", "--out", out)[0] == 2  # the measured law is not derived yet
    code, text, _ = call("derive", "--out", out, "--rounds", "1", "--json", "--device", "cpu")
    assert code == 0
    assert json.loads(text)["law"] == "measured"
    code, text, _ = call("validate", "--out", out, "--laws", "paper,measured,gaussian", "--json", "--device", "cpu")
    assert code == 0
    assert {d["law"] for d in json.loads(text)["drifts"]} == {"original", "paper", "measured", "gaussian"}
    code, _, err = call("report", "--out", out, "--device", "cpu")
    assert code == 0
    assert "the measured law" in err.replace("\n", " ")
    assert {"report.html", "report.json", "records.parquet", "summary.csv", "law.json"} <= set(os.listdir(out))
    shutil.copytree(out, tmp_path / "again")
    page = tmp_path / "compare.html"
    code, text, err = call("compare", out, tmp_path / "again", "--out", page, "--json")
    assert (code, err) == (0, "")
    assert [one["run"] for one in json.loads(text)["pooled"]] == ["run", "again"]
    assert "command</dt><dd><code>entropy-probe compare" in page.read_text()
    code, _, err = call("compare", out)
    assert (code, err) == (2, "error: comparing takes two runs at least: name another run directory\n")


def test_a_dry_run_tells_what_the_run_takes_and_keeps_nothing(call, tiny_folder, tmp_path, prompts):
    out = tmp_path / "run"
    grid = ["--model", tiny_folder, "--out", out, "--prompts", prompts, *GRID]
    code, text, _ = call("sweep", "--dry-run", "--json", *grid)
    told = json.loads(text)
    assert (code, out.exists()) == (0, False)
    assert [(row["size"], row["cells"], row["batches"]) for row in told["sizes"]] == [("32x48", 2, 1), ("64", 2, 1)]
    call("sweep", "--quiet", *grid)
    space = sum(path.stat().st_size for folder in ("cells", "images") for path in (out / folder).iterdir())
    assert told["bytes"] == pytest.approx(space, rel=0.1)
    code, text, _ = call("run", "--dry-run", "--quick", *grid)
    assert code == 0
    assert "at most" in text
    assert "minutes in one process" in text


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    drawings = ep.reference.pictures()[:8]
    for caption, picture in zip(drawings.captions, drawings.at((64, 64)), strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{caption.replace(' ', '-')}.png")
    return folder


def test_a_law_is_calibrated_on_a_folder_of_pictures_and_validated(call, tiny_folder, tmp_path, prompts, pictures):
    out = tmp_path / "run"
    assert call("sweep", "--model", tiny_folder, "--out", out, "--prompts", prompts, *GRID)[0] == 0
    code, _, err = call("derive", "--out", out, "--method", "calibrated", "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "--images" in err
    code, text, _ = call(
        "derive", "--out", out, "--method", "calibrated", "--images", pictures, "--json", "--device", "cpu"
    )
    assert code == 0
    assert json.loads(text)["law"] == "calibrated"
    judged = ("--metrics", "critic", "--images", pictures)
    code, text, _ = call("validate", "--out", out, "--laws", "calibrated", "--json", "--device", "cpu", *judged)
    assert code == 0
    assert {c["metric"] for c in json.loads(text)["quality"]["comparisons"]} >= {"text_score", "repetition"}
    assert call("report", "--out", out, "--device", "cpu")[0] == 0
    assert "Quality, alignment and defects" in (out / "report.html").read_text()
    assert call("derive", "--out", out, "--method", "magic")[0] == 2


def test_run_does_it_all_and_a_second_run_samples_nothing(call, tiny_folder, tmp_path, prompts):
    out = tmp_path / "run"
    arguments = ("run", "--quick", "--model", tiny_folder, "--out", out, "--prompts", prompts, *GRID)
    code, text, _ = call(*arguments, "--json")
    assert code == 0
    assert json.loads(text)["verdict"]
    times = {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()}
    assert call(*arguments)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()} == times


def test_samples_are_drawn_under_a_law(call, tiny_folder, tmp_path):
    arguments = (
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "out",
        "--sizes",
        "32,64x96",
        "--steps",
        "1",
        "--law",
        "paper",
    )
    assert call("sample", "noto red apple", "flat pizza", *arguments)[0] == 0
    assert len(list((tmp_path / "out").glob("*_paper.png"))) == 4


def test_info_names_the_layers(call, tiny_folder):
    code, text, _ = call("info", "--model", tiny_folder, "--sizes", "96x64", "--json", "--device", "cpu")
    assert code == 0
    first = json.loads(text)["layers"][0]
    assert (first["kind"], first["training_tokens"], first["grid at 96x64"]) == ("self", 256, "24x16")
    assert "down.0.0.0.attn1" in call("info", "--model", tiny_folder, "--device", "cpu")[1]


def test_an_interrupt_is_exit_code_130(call, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupt)
    code, _, err = call("info")
    assert code == 130
    assert "interrupted" in err


def test_help_is_there():
    result = subprocess.run([sys.executable, "-m", "entropy_probe.cli", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    for command in ("run", "sweep", "fit", "derive", "validate", "report", "compare", "sample", "info"):
        assert command in result.stdout
