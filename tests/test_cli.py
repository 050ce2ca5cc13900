"""The command line: output, exit codes, files and help texts, as a user or a program gets them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

import entropy_probe as ep
from entropy_probe.baselines.profiles import MIN_IMAGES
from entropy_probe.cli import inspection
from entropy_probe.cli import main as cli
from entropy_probe.cli.config import read_config
from entropy_probe.estimation import Derivation

GRID = ["--sizes", "64,32x48", "--seeds", "0", "--steps", "2", "--guidance-scale", "4", "--device", "cpu"]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line, and return the exit code, standard output and standard error."""

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
    "unknown model": (["--model", "/nowhere/at/all"], "unknown model '/nowhere/at/all'"),
    "size not divisible by the autoencoder": (["--sizes", "64,50"], "multiples of 8"),
    "size zero": (["--sizes", "0"], "must be positive"),
    "size negative": (["--sizes", "64x-32"], "must be positive"),
    "size not a number": (["--sizes", "big"], "HEIGHTxWIDTH"),
    "steps zero": (["--steps", "0"], "steps must be at least 1, got 0"),
    "steps not a number": (["--steps", "many"], "--steps"),
    "seed negative": (["--seeds", "-1"], "seeds must be 0 or larger"),
    "seeds not numbers": (["--seeds", "x"], "seeds must be integers"),
    "no prompts": (["--prompts", "0"], "prompts must be at least 1"),
    "no prompts file": (
        ["--prompts", "nowhere.txt"],
        "cannot read the prompts file 'nowhere.txt': No such file, or not a regular file; pass a text file",
    ),
    "invalid size without the training size": (["--sizes", "33"], "multiples of 8"),
    "too many steps without the training size": (["--sizes", "32", "--steps", "1001"], "at most 1000, got 1001"),
    "too many prompts": (["--prompts", "100000"], "bundled prompts"),
    "unknown law": (
        ["--laws", "original,magic"],
        "time_yarn, measured, gaussian, calibrated, log_power=NUMBER, pippo=NUMBER, kappa=NUMBER, or the JSON",
    ),
    "no law file": (["--laws", "original,nolaw.json"], "there is no file 'nolaw.json': give original, paper"),
    "no law": (["--laws", ","], "laws must name at least one law"),
    "rows in other digits": (["--rows", "²"], "rows must be 'all', 'auto' or a positive integer"),
    "rows too large": (["--rows", "9" * 5000], "rows must be 'all', 'auto' or a positive integer"),
    "prompts in other digits": (["--prompts", "²"], "cannot read the prompts file"),
    "prompts with two minus signs": (["--prompts=--5"], "cannot read the prompts file"),
    "folder name with NUL": (["--out", "a\0b"], "cannot write"),
    "folder name too long": (["--out", "x" * 300], "cannot write"),
    "rows zero": (["--rows", "0"], "rows must be 'all', 'auto' or a positive integer"),
    "more steps than the schedule has": (["--steps", "1001"], "steps must be at least 1 and at most 1000, got 1001"),
    "guidance not a number": (
        ["--guidance-scale", "nan"],
        "the guidance scale must be a number of at least 0, got nan",
    ),
    "negative guidance": (["--guidance-scale", "-1"], "the guidance scale must be a number of at least 0, got -1"),
    "repeated law": (["--laws", "paper,paper"], "laws must not repeat a law, got 'paper' twice"),
    "only the training size": (["--sizes", "64"], "sizes must include a size other than the training size"),
    "unknown device": (["--device", "tpu"], "device 'tpu' is not available"),
    "unknown dtype": (["--dtype", "int8"], "dtype must be"),
    "critic for another model": (["--metrics", "critic"], "was trained on the drawings of the bundled models only"),
    "network without images": (["--metrics", "some/clip"], "give a folder of them with --real-images"),
    "none next to other metrics": (["--metrics", "critic,none"], "metrics must be none alone or a list of networks"),
    "missing folder of images": (
        ["--metrics", "critic", "--real-images", "/nowhere"],
        "'/nowhere' is not a folder: give a folder of images",
    ),
    "unknown option": (["--colour", "red"], "No such option"),
    "no config file": (["--config", "nowhere.yaml"], "cannot read the config file 'nowhere.yaml'"),
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


def test_unknown_command_or_missing_prompt_suggests_what_to_type(call):
    code, _, err = call("frobnicate")
    assert (code, err.count("\n")) == (2, 1)
    assert "unknown command 'frobnicate': choose from run, sweep, sample, " in err
    assert "Did you mean 'sweep'?" in call("swep")[2]
    assert "choose from save, check, diff" in call("baseline", "frobnicate")[2]
    code, _, err = call("sample")
    assert (code, err) == (
        2,
        'error: no prompt: name at least one, such as entropy-probe sample "noto red apple" --sizes 32,64\n',
    )


@pytest.mark.parametrize("prompt", ["", "   "])
def test_sample_refuses_a_blank_prompt(call, prompt):
    code, _, err = call("sample", prompt)
    assert (code, err) == (2, "error: a prompt is blank: remove it\n")


def test_refuses_empty_prompts_file(call, tiny_folder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    code, _, err = call("run", "--model", tiny_folder, "--out", tmp_path / "run", "--prompts", tmp_path / "empty.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert "is empty: write one prompt per line" in err


def test_refuses_folder_without_run_or_without_write_access(call, tiny_folder, tmp_path, prompts):
    for stage in ("fit", "derive", "validate", "report"):
        code, _, err = call(stage, "--out", tmp_path)
        assert (code, err.count("\n")) == (2, 1)
        assert "is not a run directory" in err
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    code, _, err = call("sweep", "--model", tiny_folder, "--out", out, "--prompts", prompts, "--quiet", *GRID)
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot write" in err


@pytest.mark.slow
def test_stages_write_a_report(call, tiny_folder, tmp_path, prompts):
    out = tmp_path / "run"
    code, text, err = call("sweep", "--model", tiny_folder, "--out", out, "--prompts", prompts, "--json", *GRID)
    assert (code, err) == (0, "")
    assert json.loads(text)["cells"] == 4
    code, text, _ = call("fit", "--out", out, "--json")
    assert code == 0
    assert json.loads(text)["layers"][-1]["layer"] == "(pooled)"
    assert call("validate", "--out", out)[0] == 2  # the measured law has not been derived yet
    code, text, _ = call("derive", "--out", out, "--rounds", "1", "--json", "--device", "cpu")
    assert code == 0
    assert json.loads(text)["law"] == "measured"
    code, text, _ = call("derive", "--out", out, "--method", "gaussian", "--json")
    assert (code, json.loads(text)["law"]) == (0, "gaussian")
    assert text == ep.derive(ep.Sweep.open(out), "gaussian").to_json() == (out / "gaussian.json").read_text()
    assert isinstance(ep.laws.resolve(out / "gaussian.json"), ep.laws.Gaussian)
    code, text, _ = call("validate", "--out", out, "--laws", "paper,measured,gaussian", "--json", "--device", "cpu")
    assert code == 0
    assert {d["law"] for d in json.loads(text)["drifts"]} == {"original", "paper", "measured", "gaussian"}
    assert call("report", "--out", out, "--figures", "gif")[2] == "error: figures must be pdf, png or svg, got 'gif'\n"
    code, _, err = call("report", "--out", out, "--device", "cpu", "--figures", "svg")
    assert code == 0
    assert {"drift.svg", "images.svg", "table-overview.md"} <= set(os.listdir(out / "figures"))
    assert "the measured law" in err.replace("\n", " ")
    assert {"report.html", "report.json", "records.parquet", "summary.csv", "law.json"} <= set(os.listdir(out))
    shutil.copytree(out, tmp_path / "again")
    page = tmp_path / "compare.html"
    code, text, err = call("compare", out, tmp_path / "again", "--out", page, "--json")
    assert (code, err) == (0, "")
    assert [one["run"] for one in json.loads(text)["pooled"]] == ["run", "again"]
    assert "command</dt><dd><code>entropy-probe compare" in page.read_text()
    code, _, err = call("compare", out)
    assert (code, err) == (2, "error: a comparison needs at least two runs, got 1: add a run directory\n")


def test_dry_run_estimates_cost_and_saves_nothing(call, tiny_folder, tmp_path, prompts):
    out = tmp_path / "run"
    grid = ["--model", tiny_folder, "--out", out, "--prompts", prompts, *GRID]
    code, text, _ = call("sweep", "--dry-run", "--json", *grid)
    forecast = json.loads(text)
    assert (code, out.exists()) == (0, False)
    assert [(row["size"], row["cells"], row["batches"]) for row in forecast["sizes"]] == [("32x48", 2, 1), ("64", 2, 1)]
    call("sweep", "--quiet", *grid)
    space = sum(path.stat().st_size for folder in ("cells", "images") for path in (out / folder).iterdir())
    assert forecast["bytes"] == pytest.approx(space, rel=0.1)
    code, text, _ = call("run", "--dry-run", "--quick", *grid)
    assert code == 0
    assert "at most" in text
    assert "minutes in one process" in text


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    drawings = ep.reference.images()[:8]
    for caption, image in zip(drawings.captions, drawings.at((64, 64)), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{caption.replace(' ', '-')}.png")
    return folder


@pytest.mark.slow
def test_law_is_calibrated_on_a_folder_of_images_and_validated(call, tiny_folder, tmp_path, prompts, images):
    out = tmp_path / "run"
    assert call("sweep", "--model", tiny_folder, "--out", out, "--prompts", prompts, *GRID)[0] == 0
    code, _, err = call("derive", "--out", out, "--method", "calibrated", "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "--real-images" in err
    code, text, _ = call(
        "derive", "--out", out, "--method", "calibrated", "--real-images", images, "--json", "--device", "cpu"
    )
    assert code == 0
    derivation = Derivation.from_json(text)
    assert derivation.law == derivation.calibration.law == ep.laws.resolve(out / "calibrated.json")
    (out / "calibrated.json").write_text(ep.laws.to_json(derivation))  # as earlier versions wrote it
    ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor().save_pretrained(tmp_path / "vit")
    judged = ("--metrics", f"critic,{tmp_path / 'vit'}", "--real-images", images)
    code, text, _ = call("validate", "--out", out, "--laws", "calibrated", "--json", "--device", "cpu", *judged)
    assert code == 0
    metrics = {c["metric"] for c in json.loads(text)["quality"]["comparisons"]}
    assert metrics >= {"text_score:critic", "repetition", "kernel_distance:critic", "kernel_distance:vit"}
    losses = ("loss", "--out", out, "--device", "cpu", "--image-count", "4", "--scale-factors", "0.5,2")
    assert "--real-images" in call(*losses)[2]
    code, text, _ = call(*losses, "--real-images", images, "--json")
    assert code == 0
    assert {(row["size"], row["g"]) for row in json.loads(text)} == {
        (s, g) for s in ("32x48", "64") for g in (0.5, 1, 2)
    }
    assert all(row["change"] == 0 for row in json.loads(text) if row["g"] == 1)
    for wrong in ("", "a", "-1", "nan", "1"):
        assert call(*losses[:-1], wrong, "--real-images", images)[2].startswith("error: scale-factors must be numbers")
    assert call("report", "--out", out, "--device", "cpu")[0] == 0
    page = (out / "report.html").read_text()
    assert "Quality, alignment and defects" in page
    assert "The denoising loss" in page
    assert len(json.loads((out / "report.json").read_text())["losses"]["g"]) == 6
    assert call("derive", "--out", out, "--method", "magic")[0] == 2


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory, prompts):
    """Return a folder with a finished run and a baseline."""
    folder = tmp_path_factory.mktemp("done")
    run = ["run", "--quick", "--model", tiny_folder, "--out", folder / "run", "--prompts", prompts, *GRID]
    save = ["baseline", "save", tiny_folder, "--out", folder / "baseline.json", "--sizes", "64", "--steps", "1"]
    for arguments in (run, [*save, "--seeds", "0,1,2,3,4", "--prompts", prompts, "--device", "cpu"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["entropy-probe", *map(str, arguments), "--quiet"])
            with pytest.raises(SystemExit) as stop:
                cli.main()
        assert stop.value.code == 0
    return folder


def records(out):
    frame = pd.read_parquet(out / "records.parquet")
    return frame.sort_values(["law", "height", "width", "prompt", "seed"], kind="stable", ignore_index=True)


def test_config_of_a_run_reproduces_its_records(call, done, tmp_path):
    first, second = done / "run", tmp_path / "second"
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert config["prompts"] == ["noto red apple", "flat pizza"]
    assert (config["steps"], config["rounds"], config["laws"]) == (2, 1, ["original", "paper", "measured"])
    assert call("run", "--config", first / "config.yaml", "--out", second, "--quiet") == (0, "", "")
    pd.testing.assert_frame_equal(records(second), records(first), check_exact=True)
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()
    page = (first / "report.html").read_text()
    assert "- noto red apple\n- flat pizza\n" in page
    assert "guidance-scale: 4.0" in page


def test_stages_record_the_settings_of_all_stages(call, tiny_folder, tmp_path, prompts):
    out = tmp_path / "run"
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {tiny_folder}\nprompts: {prompts}\nsizes: [64, 32]\nseeds: 0\nsteps: 3\nlaws: paper\n")
    assert call("sweep", "--config", file, "--steps", "1", "--out", out, "--device", "cpu", "--quiet")[0] == 0
    assert "laws" not in yaml.safe_load((out / "config.yaml").read_text())
    assert call("validate", "--config", file, "--out", out, "--device", "cpu", "--quiet")[0] == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["steps"], config["laws"], config["sizes"]) == (1, ["paper"], ["64", "32"])


BAD_CONFIG = {
    "stepz: 8": "line 1: unknown setting 'stepz': did you mean 'steps'?",
    "size: 64": "line 1: unknown setting 'size': did you mean 'sizes'?",  # a setting of `export`
    "law: paper": "line 1: unknown setting 'law': did you mean 'laws'?",  # a setting of `sample`
    "config: other.yaml": "unknown setting 'config'",
    "steps: many": "run.yaml, line 1: steps must be a valid integer, got 'many'",
    "quick: perhaps": "run.yaml, line 1: quick must be a valid boolean, got 'perhaps'",
    "rounds: -1": "run.yaml, line 1: rounds must be greater than or equal to 0, got '-1'",
    "guidance-scale: x": "run.yaml, line 1: guidance-scale must be a valid number, got 'x'",
    "seeds: [0, -1]": "seeds must be 0 or larger",
    "sizes: [64, 50]": "multiples of 8",
}


@pytest.mark.parametrize("text", BAD_CONFIG)
def test_config_values_are_checked_like_flags(call, tiny_folder, tmp_path, text):
    (tmp_path / "run.yaml").write_text(f"{text}\nmodel: {tiny_folder}\n")
    code, out, err = call("run", "--config", tmp_path / "run.yaml", "--out", tmp_path / "run", "--device", "cpu")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert BAD_CONFIG[text] in err
    assert not (tmp_path / "run").exists()


def test_sample_applies_the_law(call, tiny_folder, tmp_path):
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
    code, text, err = call("sample", "noto red apple", "flat pizza", *arguments, "--json")
    result = json.loads(text)
    assert (code, err, result["law"]) == (0, "", "paper")
    assert {(d["prompt"], d["size"], d["seed"]) for d in result["images"]} == {
        (prompt, size, 0) for prompt in ("noto red apple", "flat pizza") for size in ("32", "64x96")
    }
    assert sorted(d["file"] for d in result["images"]) == sorted(map(str, (tmp_path / "out").glob("*_paper.png")))


def test_info_shows_the_layers(call, tiny_folder):
    code, text, _ = call("info", "--model", tiny_folder, "--sizes", "96x64", "--json", "--device", "cpu")
    assert code == 0
    first = json.loads(text)["layers"][0]
    assert (first["kind"], first["training_tokens"], first["grid at 96x64"]) == ("self", 256, "24x16")
    assert "down.0.0.0.attn1" in call("info", "--model", tiny_folder, "--device", "cpu")[1]


def test_interrupt_exits_with_code_130(call, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "load_pipeline", interrupt)
    code, _, err = call("info")
    assert code == 130
    assert "interrupted" in err


def commands(group=None, path=()):
    """Yield every command with the words that call it."""
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_valid_examples(call, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")  # wide enough that no example is wrapped
    text = call(*words, "--help")[1]
    examples = [line.strip() for line in text.split("Examples")[1].splitlines() if line.strip()]
    assert examples
    for example in examples:
        program, *arguments = shlex.split(example.split(" | ")[0])
        assert program == "entropy-probe"
        assert tuple(arguments[: len(words)]) == words
        COMMANDS[words].make_context("example", arguments[len(words) :], resilient_parsing=True)
        known = {flag for option in COMMANDS[words].params for flag in option.opts}
        assert {word for word in arguments if word.startswith("--")} <= known


@pytest.mark.parametrize("words", [(), ("baseline",), *COMMANDS], ids=" ".join)
def test_help_has_whole_words_and_no_type_of_switches(call, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    text = call(*words, "--help")[1]
    shown = set(text.replace("│", " ").split())
    parameters = COMMANDS[words].params if words in COMMANDS else []
    expected = {word for parameter in parameters for word in (*(parameter.help or "").split(), *parameter.opts)}
    arguments = {parameter.name for parameter in parameters if parameter.param_type_name == "argument"}
    assert expected - shown - arguments == set()
    for unwanted in ("<bool>", "BOOLEAN", "range", "x>=", "…"):
        assert unwanted not in text


def test_help_states_minimum_of_baseline_and_order_of_sizes(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert f"at least {MIN_IMAGES} images per size" in call("baseline", "save", "--help")[1]
    for command in ("run", "sweep", "sample", "info", "export"):
        assert "96x128 is height 96, width 128" in call(command, "--help")[1]


ALIASES = {
    "run --num-inference-steps 0": "steps must be at least 1, got 0",
    "run --num-inference-steps=0": "steps must be at least 1, got 0",
    "run --law magic": "unknown law 'magic'",
    "validate --law original,magic": "unknown law 'magic'",
    "run --metrics critic --images /nowhere": "'/nowhere' is not a folder",
    "sample a --laws magic": "unknown law 'magic'",
    "sample a --laws original,paper": "sample applies one law at a time, got 'original,paper': name one law",
    "fit --laws paper": "No such option",
}


@pytest.mark.parametrize("line", ALIASES)
def test_aliases_of_flags_have_the_same_effect(call, tiny_folder, line):
    command, *arguments = line.split()
    model = [] if command in ("fit", "validate") else ["--model", tiny_folder]
    code, _, err = call(command, *arguments, *model)
    assert (code, err.count("\n")) == (2, 1)
    assert ALIASES[line] in err


def test_config_accepts_aliases(tmp_path):
    (tmp_path / "run.yaml").write_text("num_inference_steps: 4\nimages: photos\n")
    settings = read_config(tmp_path / "run.yaml", {"steps", "real-images", "law", "laws"})
    assert settings == {"steps": "4", "real-images": "photos"}


@pytest.fixture
def arguments(done, tiny_folder, tmp_path, prompts, images):
    """Return arguments with which each command succeeds."""
    run = ["--out", shutil.copytree(done / "run", tmp_path / "run")]
    specific = {
        ("run",): ["--quick", "--model", tiny_folder, "--prompts", prompts, *GRID, *run],
        ("sweep",): ["--model", tiny_folder, "--prompts", prompts, *GRID, *run],
        ("derive",): ["--rounds", "0", *run],
        ("validate",): ["--laws", "paper", *run],
        ("loss",): ["--real-images", images, "--scale-factors", "2", *run],
        ("sample",): ["flat pizza", "--model", tiny_folder, "--steps", "1", "--out", tmp_path / "samples"],
        ("export",): ["paper", "--to", "comfyui", "--model", tiny_folder, "--out", tmp_path / "node"],
        ("info",): ["--model", tiny_folder],
        ("compare",): [done / "run", tmp_path / "run", "--out", tmp_path / "compare.html"],
        ("baseline", "save"): [tiny_folder, "--sizes", "64", "--steps", "1", "--out", tmp_path / "baseline.json"],
        ("baseline", "check"): [tiny_folder, done / "baseline.json"],
        ("baseline", "diff"): [done / "baseline.json", done / "baseline.json"],
    }
    return lambda words: [*words, *specific.get(words, run)]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_json_flag_prints_only_json_and_no_finished_cell_is_sampled_again(call, arguments, tmp_path, words):
    given = arguments(words)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").iterdir()}
    code, text, err = call(*given, "--json")
    assert (code, err) == (0, "")
    assert json.loads(text)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").iterdir()} == before
    if words == ("run",):
        assert json.loads(text)["verdict"]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != ("info",)], ids=" ".join)
def test_quiet_prints_nothing(call, arguments, words):
    assert call(*arguments(words), "--quiet") == (0, "", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_values():
    completed = {
        "entropy-probe val": "validate",
        "entropy-probe baseline ch": "check",
        "entropy-probe run --guid": "--guidance-scale",
        "entropy-probe derive --method cal": "calibrated",
    }
    script = 'eval "$(entropy-probe --show-completion)"\n' + "".join(
        f"COMP_WORDS=({line}) COMP_CWORD={len(line.split()) - 1}\n"
        '_entropy_probe_completion entropy-probe\necho "${COMPREPLY[@]}"\n'
        for line in completed
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    output = subprocess.check_output(["bash", "-c", script], env={**os.environ, "PATH": path}, text=True)
    assert output.split() == list(completed.values())


def test_help_lists_the_commands():
    result = subprocess.run([sys.executable, "-m", "entropy_probe.cli", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    for command in ("run", "sweep", "fit", "derive", "validate", "report", "compare", "sample", "info"):
        assert command in result.stdout


def test_version_and_short_help_flags(call):
    assert call("--version") == (0, f"entropy-probe {ep.__version__}\n", "")
    code, text, _ = call("loss", "-h")
    assert code == 0
    assert "--scale-factors" in text
    assert "--multipliers" not in text
    assert call("sweep", "-h")[1].count("from the model") == 2


def test_renamed_flags_still_work_with_a_warning(call, done, images, tmp_path):
    run = ["loss", "--out", shutil.copytree(done / "run", tmp_path / "run"), "--real-images", images, "--device", "cpu"]
    code, text, err = call(*run, "--pictures", "4", "--multipliers=2", "--json")
    assert code == 0
    assert err.splitlines() == [
        "warning: --pictures is deprecated: use --image-count",
        "warning: --multipliers is deprecated: use --scale-factors",
    ]
    assert {row["g"] for row in json.loads(text)} == {1, 2}


def test_steps_and_guidance_scale_default_to_the_model(call, tiny_folder, tmp_path, prompts):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    (model / "sampling.json").write_text('{"steps": 2, "guidance_scale": 3.0}')
    grid = ["--model", model, "--prompts", prompts, "--sizes", "64", "--seeds", "0", "--device", "cpu", "--quiet"]
    assert call("sweep", *grid, "--out", tmp_path / "run") == (0, "", "")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["steps"], config["guidance-scale"]) == (2, 3.0)
    baseline = tmp_path / "baseline.json"
    save = ["baseline", "save", model, "--prompts", prompts, "--sizes", "64", "--device", "cpu", "--quiet"]
    assert call(*save, "--seeds", "0,1,2,3", "--out", baseline) == (0, "", "")
    settings = json.loads(baseline.read_text())["settings"]
    assert (settings["steps"], settings["guidance_scale"]) == (2, 3.0)
