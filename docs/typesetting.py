"""Typeset the pages of the site: formulas, links to the glossary, and long tables that open on a click.

- `$...$` and `$$...$$` become MathML, which browsers draw without a script. GitHub draws the same notation.
- The first use of each term of the glossary on a page links to its entry.
- A table of results with more than `LONG` rows is folded.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.utils import get_relative_url

LONG = 9
RESULTS = {"results.md", "defects.md", "performance.md", "reliability.md", "scenes.md"}
"""Pages with results: their long tables are folded. Tables of other pages are references."""

CODE = r"^(?P<fence>```+|~~~+).*?^(?P=fence)|`+[^`]+`+|^ {4,}\S.*?$|<!--.*?-->"
FORMULA = re.compile(
    rf"{CODE}|\$\$(?P<block>[^$]+)\$\$|(?<![\w$\\])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$(?!\w)", re.M | re.S
)
MARK = "\ue000{}\ue001"
"""Replaces a formula while Markdown is converted: Markdown would change the formula."""

SPACED_LN = '<mo form="prefix" lspace="0.17em" rspace="0.17em">ln</mo>'

ENTRY = re.compile(r"<p><strong>([^<]+)\.</strong>")
COMMON = {
    "batch", "branch", "cell", "grid", "level", "profile", "rows", "logit", "repetition", "layer names", "nat", "shard",
    "forward pass", "h", "g", "n", "t",
}  # fmt: skip
"""Names in the glossary that pages also use in their usual meaning. They are not linked."""

UNLINKED = re.compile(r"<(a|code|pre|h\d|math|table|figure|summary|nav|button)\b")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace each formula of a page by a mark."""
    page.formulas = []

    def mark(match: re.Match[str]) -> str:
        formula = match["block"] or match["inline"]
        if formula is None:
            return match[0]
        mathml = convert(formula.strip(), display="block" if match["block"] else "inline")
        page.formulas.append(mathml.replace("<mi>ln</mi>", SPACED_LN))
        return MARK.format(len(page.formulas) - 1)

    return FORMULA.sub(mark, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Insert the formulas, link the terms, and fold the long tables."""
    content = re.sub("\ue000(\\d+)\ue001", lambda mark: page.formulas[int(mark[1])], content)
    if page.file.src_uri == "glossary.md":
        return ENTRY.sub(lambda entry: f'<p id="{anchor(entry[1])}"><strong>{entry[1]}.</strong>', content)
    if page.file.src_uri in RESULTS:
        content = fold(content)
    if page.file.src_uri.startswith(("api/", "CHANGELOG")):
        return content
    glossary = get_relative_url(files.get_file_from_path("glossary.md").url, page.url)
    return link_terms(content, terms(Path(config.docs_dir, "glossary.md").read_text()), glossary)


def anchor(names: str) -> str:
    """Return the anchor of an entry of the glossary.

    >>> anchor("Baseline, profile")
    'baseline'
    """
    return re.sub(r"[^a-z0-9]+", "-", html.unescape(names).lower().split(", ")[0]).strip("-") or "entry"


def terms(glossary: str) -> dict[str, str]:
    """Return the anchor of each term to link.

    >>> terms("**Baseline, profile.** The entropy ...")
    {'baseline': 'baseline'}
    """
    entries = re.findall(r"^\*\*(.+?)\.\*\*", glossary, re.M)
    names = {re.sub(r" \(.*", "", name.lower()): anchor(entry) for entry in entries for name in entry.split(", ")}
    return {name: target for name, target in names.items() if name not in COMMON}


def link_terms(content: str, targets: dict[str, str], glossary: str) -> str:
    """Link the first use of each term in the text of a page. Headings, code, tables and links stay as they are.

    >>> link_terms("<p>The drift is a <code>drift</code>. Drift!</p>", {"drift": "drift"}, "glossary/")
    '<p>The <a href="glossary/#drift" class="term">drift</a> is a <code>drift</code>. Drift!</p>'
    """
    left, skipped, parts = dict(targets), "", []
    for part in re.split(r"(<[^>]+>)", content):
        if part.startswith("<"):
            opened = UNLINKED.match(part)
            if not skipped and opened:
                skipped = opened[1]
            elif skipped and part.startswith(f"</{skipped}>"):
                skipped = ""
        elif not skipped and left:
            names = "|".join(sorted(map(re.escape, left), key=len, reverse=True))

            def link(match: re.Match[str]) -> str:
                target = left.pop(match[1].lower(), None)
                return f'<a href="{glossary}#{target}" class="term">{match[0]}</a>' if target else match[0]

            part = re.sub(rf"(?<![\w-])({names})s?(?![\w-])", link, part, flags=re.I)
        parts.append(part)
    return "".join(parts)


def fold(content: str) -> str:
    """Fold the tables with more than `LONG` rows. The summary names the rows and columns."""

    def folded(table: re.Match[str]) -> str:
        rows = table[0].count("<tr>") - 1
        if rows <= LONG:
            return table[0]
        columns = ", ".join(re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<th.*?>(.*?)</th>", table[0], re.S))
        return f"<details><summary>{rows} rows: {columns}</summary>{table[0]}</details>"

    return re.sub(r"<table>.*?</table>", folded, content, flags=re.S)
