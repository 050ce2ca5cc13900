"""Every notebook runs from top to bottom, and is committed with its output.

`python -m tests.test_notebooks` runs all notebooks and saves their output. Append names to run only these:
`python -m tests.test_notebooks 1_what_the_probes_see`.
"""

import ast
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import entropy_probe

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


ABSOLUTE = re.compile(r"(?<![\w./<])/(?:[\w.-]+/)+[\w.-]*")
"""An absolute path of the machine on which a notebook ran."""


def output_texts(cells: list[NotebookNode]) -> Iterator[str]:
    """Yield the text output of cells. Images are excluded: their encoding can contain any path by chance."""
    for output in (output for cell in cells for output in cell.outputs):
        yield str(output.get("text", ""))
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield re.sub(r"data:image/[^\"']*", "", str(content))


def execute(path: Path) -> NotebookNode:
    """Return a notebook after running it in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, resources=resources, record_timing=False).execute()
    return notebook


def without_machine(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook without progress bars, warnings of libraries, and the version of Python."""
    bar = "application/vnd.jupyter.widget-view+json"
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and bar not in o.get("data", {})]
    return notebook


def imported_names(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for every name that a notebook imports from entropy_probe."""
    for cell in nbformat.read(path, as_version=4).cells:
        code = re.sub(r"^[!%].*$", "", cell.source, flags=re.MULTILINE) if cell.cell_type == "code" else ""
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "entropy_probe":
                yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_imports_only_public_names(path):
    packages = {module.name for module in pkgutil.iter_modules(entropy_probe.__path__) if module.ispkg}
    for module, name in imported_names(path):
        public = importlib.import_module(module).__all__
        assert name in public or (module == "entropy_probe" and name in packages), f"{module}.{name}"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path):
    assert all(cell.get("execution_count") for cell in execute(path).cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_with_its_output(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        if "plt.subplots(" in cell.source or ".plot();" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    for text in output_texts(cells):
        assert not ABSOLUTE.search(text)
        assert "site-packages" not in text


def test_notebooks_are_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 2e6


if __name__ == "__main__":
    for notebook_path in NOTEBOOKS:
        if len(sys.argv) == 1 or notebook_path.stem in sys.argv[1:]:
            nbformat.write(without_machine(execute(notebook_path)), notebook_path)
