"""The code of README.md and docs/ runs as it stands there, and the site builds without a warning.

Blocks under a comment `<!-- compiled only: why -->` need a model or a machine that the tests do not have.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- compiled only: [^\n]+ -->\n)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PACKAGES = sorted(path.parent.name for path in (ROOT / "entropy_probe").glob("*/__init__.py"))

mpl.use("agg")


def blocks(page):
    """The Python blocks of a page, each at its own line, and whether it is to be run."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        start = text[: found.start(2)].count("\n")
        yield compile("\n" * start + found[2], str(page.relative_to(ROOT)), "exec"), not found[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=lambda p: p.stem)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for code, runs in blocks(page):
        if runs:
            exec(code, names)


@pytest.mark.slow
def test_the_test_of_the_ci_page_fails_until_it_has_a_baseline(tmp_path):
    page = (ROOT / "docs" / "howto" / "ci.md").read_text()
    (tmp_path / "test_model.py").write_text(BLOCK.search(page)[2])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_model.py"]
    first, second = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, second.returncode) == (1, 0), second.stdout
    assert "no baseline yet" in first.stdout
    assert str(Path("test_model") / "test_attention_is_what_it_was.json") in first.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_asks_nothing_of_the_outside(site):
    fetched = re.compile(r"""<(?:script|img|iframe|link(?![^>]*rel="canonical"))[^>]*\s(?:src|href)=["']?https?:""")
    for page in site.rglob("*.html"):
        assert not fetched.search(page.read_text()), page


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(site, package):
    module = importlib.import_module(f"entropy_probe.{package}")
    page = (site / "api" / package / "index.html").read_text()
    public = getattr(module, "__all__", ("load", "images", "prompts"))
    assert [n for n in public if not re.search(rf'id="entropy_probe\.{package}\.(\w+\.)?{n}"', page)] == []


def test_the_site_has_the_pages_that_lie_outside_docs(site):
    home = (site / "index.html").read_text()
    for link in re.findall(r'href="((?!https?:|#)[^"]+)"', home):
        assert (site / link.split("#")[0]).exists(), link
    assert "Two commands" in home
    assert (site / "notebooks" / "1_what_the_probes_see.ipynb").is_file()
