"""The core works without the optional libraries, and a missing library or model is an error that names its extra."""

import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from entropy_probe import bundled as bundled_module
from entropy_probe.bundled import bundled
from entropy_probe.errors import InputError, MissingLibraryError
from entropy_probe.extras import EXTRAS, check_installed, name_missing_extra

BLOCK = f"""
import sys
for library in {[*EXTRAS, "upath", "s3fs", "IPython"]}:
    sys.modules[library] = None
"""
"""The first lines of a process that has only the core."""

CORE = """
import contextlib
import entropy_probe as ep

pipeline = ep.load(sys.argv[1], device="cpu")
with ep.capture(pipeline) as captured:
    pipeline("flat pizza", height=64, width=64, num_inference_steps=1)
sweep = ep.sweep(
    pipeline, prompts=["flat pizza", "noto red apple"], sizes=[(32, 32), (64, 64)], steps=1, store=sys.argv[2]
)
derivation = ep.derive(sweep, "gaussian")
with ep.scaled(pipeline, derivation):
    pipeline("flat pizza", height=32, width=32, num_inference_steps=1)
outcome = ep.validate(sweep, ["paper"])
print(len(captured) > 0, ep.fit(sweep).table()["slope"].notna().all(), len(outcome.table()) > 0, captured._repr_html_())
for view in (captured.plot, lambda: ep.report, lambda: ep.explore, ep.reference.images):
    with contextlib.suppress(ep.InputError):
        view()
        print("ran without its library:", view)
"""

COMMANDS = """
from entropy_probe.cli.main import main

for arguments in {commands}:
    sys.argv = ["entropy-probe", *arguments]
    try:
        main()
    except SystemExit as end:
        print(arguments[0], end.code, file=sys.stderr)
"""


def in_core(code, *arguments):
    """Run code in a process without the optional libraries. Return its output and its error output."""
    done = subprocess.run([sys.executable, "-c", BLOCK + code, *map(str, arguments)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def core_run(tiny_folder, tmp_path_factory):
    """The run directory of a sweep in the core, and the output of the process."""
    folder = tmp_path_factory.mktemp("core") / "run"
    return folder, in_core(CORE, tiny_folder, folder)[0]


def test_core_captures_sweeps_fits_scales_and_measures_drift(core_run):
    assert core_run[1].splitlines()[-1] == "True True True None"


def test_command_line_of_core_samples_and_analyses(tiny_folder, core_run, tmp_path):
    folder, _ = core_run
    grid = ["--model", str(tiny_folder), "--out", str(tmp_path / "run"), "--quiet"]
    commands = [
        ["--help"],
        ["info", "--model", str(tiny_folder)],
        ["sweep", *grid, "--sizes", "32,64", "--prompts", "2", "--steps", "1"],
        ["fit", "--out", str(folder), "--quiet"],
        ["derive", "--method", "gaussian", "--out", str(folder), "--quiet"],
        ["validate", "--laws", "paper", "--metrics", "none", "--model", str(tiny_folder), "--out", str(folder)],
        ["run", *grid, "--sizes", "32,64", "--prompts", "1", "--steps", "1", "--dry-run"],
    ]
    _, errors = in_core(COMMANDS.format(commands=commands))
    ended = [line for line in errors.splitlines() if re.fullmatch(r"\S+ \d+", line)]  # among the tables of `validate`
    assert ended == [f"{command[0]} 0" for command in commands]


def test_command_line_names_the_missing_extra_in_one_line_before_it_samples(tiny_folder, core_run, tmp_path):
    folder, _ = core_run
    out = ["--out", str(tmp_path / "run")]
    commands = [["run", *out], ["report", "--out", str(folder)], ["sweep", "--engine", "ray", *out]]
    commands += [["validate", "--metrics", str(tiny_folder), "--real-images", str(tmp_path), "--out", str(folder)]]
    _, errors = in_core(COMMANDS.format(commands=commands))
    lines = errors.splitlines()
    assert lines[1::2] == ["run 2", "report 2", "sweep 2", "validate 2"]
    remedy = 'error: this needs {}: pip install "entropy-probe[{}]"'
    assert [lines[0], lines[4]] == [remedy.format("matplotlib", "report"), remedy.format("ray", "ray")]
    assert lines[2].endswith('pip install "entropy-probe[report]"')
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("library", sorted(EXTRAS))
def test_every_optional_library_has_an_extra_that_installs_it(library):
    settings = ConfigParser()
    settings.read(Path(__file__).parents[1] / "setup.cfg")
    requirements = settings["options.extras_require"][EXTRAS[library]]
    assert library.replace("_", "-") in {re.split("[>[]", line)[0] for line in requirements.split()}
    assert library.replace("_", "-") not in settings["options"]["install_requires"]


def test_broken_library_and_other_library_keep_their_errors():
    with pytest.raises(ImportError, match="broken") as broken, name_missing_extra():
        raise ImportError("broken", name="matplotlib")
    with pytest.raises(ModuleNotFoundError) as other, name_missing_extra():
        import a_library_that_nobody_has  # noqa: F401
    assert not isinstance(broken.value, InputError)
    assert not isinstance(other.value, InputError)


def test_missing_library_is_an_input_error_and_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(InputError) as error:
        check_installed("validate")
    assert str(error.value) == 'this needs torchmetrics: pip install "entropy-probe[validate]"'
    assert isinstance(error.value, ImportError)


def test_models_are_found_in_their_distribution_and_named_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled_module, "__file__", str(tmp_path / "entropy_probe" / "bundled.py"))
    monkeypatch.setitem(sys.modules, "entropy_probe_models", None)
    with pytest.raises(MissingLibraryError, match=r"^'reference' is not installed: pip install entropy-probe-models"):
        bundled("reference")
    monkeypatch.delitem(sys.modules, "entropy_probe_models")
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "entropy_probe_models"
    (package / "reference").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "reference" / "model_index.json").write_text(json.dumps({}))
    assert bundled("reference") == package / "reference"
    monkeypatch.delitem(sys.modules, "entropy_probe_models")
