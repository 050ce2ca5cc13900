"""The site shows pages that lie outside docs/, and keeps the links that GitHub follows.

A page keeps its place in the repository, less the leading `docs/`; README.md is the home page. A link is resolved where
GitHub resolves it, in the repository, and then written relative to the page's place on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "benchmarks/*.md",
    "data/*/*.md", "data/*/*.png", "data/*/*.csv", "data/*/*.json", "notebooks/*.ipynb",
)  # fmt: skip
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = _on_site(path.relative_to(ROOT).as_posix())
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write the links of a page for its place on the site."""
    place = page.file.src_uri
    folder = posixpath.dirname(Path(page.file.abs_src_path).relative_to(ROOT).as_posix())

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if (ROOT / target).is_dir():
            target = posixpath.join(target, "README.md")
        return link[1] + posixpath.relpath(_on_site(target), posixpath.dirname(place) or ".")

    return LINK.sub(moved, markdown)


def _on_site(path: str) -> str:
    return "index.md" if path == "README.md" else path.removeprefix("docs/")
