"""The layout of the package: imports run in one direction, and the start imports no large library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "entropy_probe"
ORDER = (
    "statistics", "attention", "callbacks", "models", "reference", "laws", "runs", "estimation", "evaluation",
    "baselines", "plots", "reports", "cli",
)  # fmt: skip
"""A package may import only packages to its left, and the modules in `BASE`."""
BASE = (
    "bundled", "deprecation", "errors", "escape", "extras", "interruption", "library_versions", "old_names", "paths",
    "progress", "strict_json", "version", "views",
)  # fmt: skip
"""Modules without a package; they import each other only."""
OLD = ("critic", "fitting", "pipelines", "regression", "validation")
"""Old names of packages. No other module may import them."""
TOP = ("__init__", "pytest_plugin", *OLD)
"""Modules that may import every package."""
HEAVY = ("torch", "diffusers", "transformers", "pandas", "matplotlib", "scipy")


def imports(path: Path) -> list[str]:
    """Return the full names of the modules that a file imports, also inside functions and under TYPE_CHECKING."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            found += [f"{module}.{alias.name}" if module == "entropy_probe" else module for alias in node.names]
    return found


def part(module: str) -> str | None:
    """Return the package or module of entropy_probe that is imported, or None for other libraries."""
    names = module.split(".")
    return (names[1] if len(names) > 1 else "__init__") if names[0] == "entropy_probe" else None


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_order_contains_every_package_and_module():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(ORDER)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*BASE, *TOP}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_in_one_direction(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in TOP:
        return
    allowed = {*BASE, *ORDER[: ORDER.index(own) + 1]} if own in ORDER else set(BASE)
    assert {part(module) for module in imports(path)} - {None} <= allowed


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_is_imported_by_string(path):
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"import_module", "__import__"}
    assert "sys.modules" not in path.read_text()


@pytest.mark.parametrize("folder", ["recipes", "research", "benchmarks"])
def test_package_does_not_import_folders_that_are_not_installed(folder):
    assert not [path for path in modules() if any(name.split(".")[0] == folder for name in imports(path))]


@pytest.mark.parametrize("name", sorted({name for name in ORDER if name != "cli"}))
def test_no_public_function_shares_its_name_with_a_package(name):
    import entropy_probe

    assert not callable(getattr(entropy_probe, name, None)) or name not in entropy_probe.__all__


def test_no_file_is_longer_than_400_lines_and_no_function_longer_than_60():
    long = []
    for path in modules():
        text = path.read_text()
        if text.count("\n") > 400:
            long.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path.name}: {node.name} has {lines} lines"] if lines > 60 else []
    assert not long


@pytest.mark.parametrize("command", ["import entropy_probe", "import entropy_probe.cli.main"])
def test_start_imports_no_large_library(command):
    check = f"{command}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"
