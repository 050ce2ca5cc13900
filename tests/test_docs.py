"""The code of README.md and docs/ runs, and the site builds without a warning.

A block under a comment `<!-- compiled only: reason -->` is compiled but not run: it needs a model or a machine that the
tests do not have.
"""

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- compiled only: [^\n]+ -->\n)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WITHOUT_PYTHON_API = ("cli", "plots")
PACKAGES = sorted(
    path.parent.name
    for path in (ROOT / "entropy_probe").glob("*/__init__.py")
    if path.parent.name not in WITHOUT_PYTHON_API
)

mpl.use("agg")


def blocks(page):
    """Yield each Python block of a page, compiled with the line numbers of the page, and whether it is run."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        start = text[: match.start(2)].count("\n")
        yield compile("\n" * start + match[2], str(page.relative_to(ROOT)), "exec"), not match[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=lambda p: p.stem)
def test_python_blocks_of_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for code, is_run in blocks(page):
        if is_run:
            exec(code, names)


@pytest.mark.slow
def test_example_test_of_ci_page_fails_without_baseline_then_passes(tmp_path):
    page = (ROOT / "docs" / "howto" / "ci.md").read_text()
    (tmp_path / "test_model.py").write_text(BLOCK.search(page)[2])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_model.py"]
    first, second = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, second.returncode) == (1, 0), second.stdout
    assert "no baseline yet" in first.stdout
    assert str(Path("test_model") / "test_attention_is_unchanged.json") in first.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.clone
def test_site_loads_nothing_from_other_hosts(site):
    remote = re.compile(r"""<(?:script|img|iframe|link(?![^>]*rel="canonical"))[^>]*\s(?:src|href)=["']?https?:""")
    for page in site.rglob("*.html"):
        assert not remote.search(page.read_text()), page


@pytest.mark.clone
def test_site_has_formulas_glossary_links_and_folded_results(site):
    method = (site / "method" / "index.html").read_text()
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in method
    assert not re.search(r"\$[^<]*\\\\|\ue000", method)
    entries = set(re.findall(r'<p id="([^"]+)"><strong>', (site / "glossary" / "index.html").read_text()))
    links = {
        link
        for page in site.rglob("*.html")
        for link in re.findall(r'glossary/#([^"]+)" class="term"', page.read_text())
    }
    assert len(links) > 15
    assert links <= entries
    assert "<details><summary>" in (site / "defects" / "index.html").read_text()


def load_hook(name):
    return SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / name)))


def test_formulas_become_mathml_outside_code():
    hook, page = load_hook("typesetting.py"), SimpleNamespace(file=SimpleNamespace(src_uri="CHANGELOG.md"))
    text = "Costs $5 and $6: $g^2$ and `$x$`.\n\n$$\n\\ln N\n$$\n\n```sh\necho $A $B\n```\n"
    marked = hook.on_page_markdown(text, page)
    assert marked.count("\ue000") == 2
    assert "`$x$`" in marked
    assert "echo $A $B" in marked
    content = hook.on_page_content(marked, page, None, None)
    assert "<msup><mi>g</mi><mn>2</mn></msup>" in content
    assert 'display="block"' in content
    assert "Costs $5 and $6" in content


def test_first_use_of_a_term_links_to_the_glossary():
    hook = load_hook("typesetting.py")
    targets = hook.terms((ROOT / "docs" / "glossary.md").read_text())
    assert targets["drift"] == "drift"
    assert "cell" not in targets
    content = '<h2>Drift</h2><p>A <a href="x">drift</a>: drifts of <code>drift</code>. Drift.</p>'
    link = '<a href="../glossary/#drift" class="term">drifts</a>'
    assert hook.link_terms(content, targets, "../glossary/") == content.replace("drifts", link)


def test_long_tables_are_folded():
    hook = load_hook("typesetting.py")
    short, long = ("<table><tr><th>law</th></tr>" + "<tr><td>1</td></tr>" * n + "</table>" for n in (2, 20))
    assert hook.fold(short + long) == f"{short}<details><summary>20 rows: law</summary>{long}</details>"


@pytest.mark.clone
@pytest.mark.parametrize("package", PACKAGES)
def test_api_page_documents_every_public_name(site, package):
    module = importlib.import_module(f"entropy_probe.{package}")
    page = (site / "api" / package / "index.html").read_text()
    public = getattr(module, "__all__", ("load", "images", "prompts"))
    assert [n for n in public if not re.search(rf'id="entropy_probe\.{package}\.(\w+\.)?{n}"', page)] == []


@pytest.mark.clone
def test_site_includes_pages_outside_docs(site):
    home = (site / "index.html").read_text()
    for link in re.findall(r'href="((?!https?:|#)[^"]+)"', home):
        assert (site / link.split("#")[0]).exists(), link
    assert "Find a page" in home
    assert (site / "notebooks" / "1_what_the_probes_see.ipynb").is_file()


LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


@pytest.mark.clone
@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(ROOT.glob("data/*/README.md"))], ids=lambda p: p.parent.name
)
def test_links_of_repository_page_exist(page):
    links = LINK.findall(page.read_text())
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_has_the_commands_that_ci_extracts():
    text = (ROOT / "README.md").read_text()
    commands = dict(re.findall(r"^<!-- (run|tests) -->\n```sh\n(.+?)\n```\n<!-- end -->$", text, re.MULTILINE))
    assert set(commands) == {"run", "tests"}
    assert commands["tests"].endswith("pytest -n auto")


def test_page_on_pypi_has_only_absolute_links(monkeypatch):
    """PyPI shows README.md without the repository."""
    monkeypatch.setattr("setuptools.setup", lambda **settings: None)
    page = runpy.run_path(str(ROOT / "setup.py"))["absolute_links"]((ROOT / "README.md").read_text())
    assert LINK.findall(page) == []
    assert re.search(r"!\[[^]]+\]\(https://[^)]+/raw/main/docs/images/gallery.png\)", page)
    assert re.search(r"\[CHANGELOG\]\(https://[^)]+/blob/main/CHANGELOG.md\)", page)
