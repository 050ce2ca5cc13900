"""Every notebook runs from top to bottom, and is committed with what it shows.

`python -m tests.test_notebooks` writes them anew.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


ABSOLUTE = re.compile(r"(?<![\w./<])/(?:[\w.-]+/)+[\w.-]*")
"""The path of a file or folder of the machine on which a notebook ran."""


def texts(cells: list[NotebookNode]) -> Iterator[str]:
    """What cells show in words: images are left out, in whose letters any path may stand."""
    for shown in (shown for cell in cells for shown in cell.outputs):
        yield str(shown.get("text", ""))
        for kind, content in shown.get("data", {}).items():
            if not kind.startswith("image/"):
                yield re.sub(r"data:image/[^\"']*", "", str(content))


def executed(path: Path) -> NotebookNode:
    """A notebook, run in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, resources=resources, record_timing=False).execute()
    return notebook


def without_machine(notebook: NotebookNode) -> NotebookNode:
    """Without the progress bars and warnings of libraries, and without the Python that ran it."""
    bar = "application/vnd.jupyter.widget-view+json"
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and bar not in o.get("data", {})]
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path):
    assert all(cell.get("execution_count") for cell in executed(path).cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        if "plt.subplots(" in cell.source or ".plot();" in cell.source:
            assert any("image/png" in shown.get("data", {}) for shown in cell.outputs), cell.source
    for told in texts(cells):
        assert not ABSOLUTE.search(told)
        assert "site-packages" not in told


def test_notebooks_are_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 2e6


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(without_machine(executed(path)), path)
