"""Add the pages outside docs/ to the site and rewrite links between them.

A page keeps its path in the repository without the leading `docs/`. A link is resolved in the repository, as GitHub
does, and then written relative to the page on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "benchmarks/*.md",
    "data/*/*.md", "data/*/*.png", "data/*/*.csv", "data/*/*.json", "notebooks/*.ipynb",
)  # fmt: skip
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            site_path = _on_site(path.relative_to(ROOT).as_posix())
            files.append(File.generated(config, site_path, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page for its path on the site."""
    site_path = page.file.src_uri
    folder = posixpath.dirname(Path(page.file.abs_src_path).relative_to(ROOT).as_posix())

    def rewrite(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if (ROOT / target).is_dir():
            target = posixpath.join(target, "README.md")
        return link[1] + posixpath.relpath(_on_site(target), posixpath.dirname(site_path) or ".")

    return LINK.sub(rewrite, markdown)


def _on_site(path: str) -> str:
    return path.removeprefix("docs/")
