"""The order of the house: imports run downhill, and what must start quickly imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "entropy_probe"
ORDER = ["statistics", "capture", "pipelines", "laws", "sweep", "fitting", "validation", "report", "regression", "cli"]


def imported(path: Path) -> set[str]:
    """Subpackages of entropy_probe that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found |= {n.split(".")[1] for n in names if n.startswith("entropy_probe.") and n.count(".")}
    return found


@pytest.mark.parametrize("part", ORDER[:-1])
def test_imports_run_downhill(part):
    above = set(ORDER[ORDER.index(part) + 1 :])
    for path in (PACKAGE / part).glob("*.py"):
        assert not imported(path) & above, path


@pytest.mark.parametrize("command", ["import entropy_probe", "import entropy_probe.cli"])
def test_start_imports_nothing_heavy(command):
    check = (
        f"{command}; import sys; print([m for m in ('torch', 'diffusers', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"


def test_public_functions_keep_their_names_when_subpackages_are_imported():
    check = "import entropy_probe.sweep.run, entropy_probe as ep; print(callable(ep.sweep), callable(ep.capture))"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).split() == ["True", "True"]
