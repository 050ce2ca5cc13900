"""Render figures, tables and settings as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable, Mapping, Sequence
from csv import QUOTE_NONNUMERIC
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.resources import files
from typing import NamedTuple
from urllib.parse import quote

import jinja2
import pandas as pd

from entropy_probe.escape import for_spreadsheet
from entropy_probe.plots import Plot, inline_svg, page_theme


@dataclass(frozen=True)
class Shown:
    """A figure of a page.

    Attributes:
        section: title of its section.
        caption: text under the figure.
        draw: returns the figure, and the data for its CSV file.
        folded: whether the figure is hidden until the reader opens it.
    """

    section: str
    caption: str
    draw: Callable[[], Plot]
    folded: bool = False


@dataclass(frozen=True)
class Content:
    """The content of a page.

    Attributes:
        title: the heading.
        verdict: the results as sentences.
        shown: the figures; figures of one section follow each other.
        tables: tables by title.
        facts: settings by name.
        config: a YAML file that repeats the run.
        summary: three sentences above everything else.
        alerts: warnings on what the results cannot show.
        overview: the main table.
        terms: the terms of the page with their definitions.
        citation: the paper that the page refers to.
        remark: text under the verdict.
        files: text on the files next to the page.
        nothing: text instead of an empty verdict.
    """

    title: str
    verdict: Sequence[str]
    shown: Sequence[Shown]
    tables: dict[str, pd.DataFrame]
    facts: dict[str, str]
    config: str = ""
    summary: Sequence[str] = ()
    alerts: Sequence[str] = ()
    overview: pd.DataFrame = field(default_factory=pd.DataFrame)
    terms: Mapping[str, str] = field(default_factory=dict)
    citation: str = ""
    remark: str = ""
    files: str = ""
    nothing: str = "No results yet."


class _Figure(NamedTuple):
    name: str
    caption: str
    svg: str
    csv: str
    folded: bool


class _Table(NamedTuple):
    title: str
    name: str
    columns: list[str]
    rows: list[tuple[object, ...]]
    csv: str


def render(content: Content) -> str:
    """Return the page as HTML text."""
    sections: dict[str, list[_Figure]] = {}
    with page_theme():
        for number, shown in enumerate(content.shown, 1):
            sections.setdefault(shown.section, []).append(_figure(number, shown))
    script = _asset("page.js")
    loader = jinja2.FunctionLoader(_asset)
    return (
        jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
        .get_template("page.html")
        .render(
            content=content,
            sections=sections,
            tables=[_table(title, table) for title, table in content.tables.items()],
            overview=_table("Overview", content.overview) if len(content.overview) else None,
            today=date.today().isoformat(),
            style=_asset("page.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def frame(text: str) -> str:
    """Return a page in a frame, for a notebook."""
    return f'<iframe srcdoc="{html.escape(text)}" width="100%" height="900" style="border:0"></iframe>'


def csv(table: pd.DataFrame) -> str:
    r"""Return a table as CSV text. Text that a spreadsheet would read as a formula is prefixed with an apostrophe.

    Text is quoted, because some spreadsheets split cells at semicolons.

    Examples:
        >>> csv(pd.DataFrame({"prompt": ["=1+1"], "entropy": [2.5]}))
        '"prompt","entropy"\n"\'=1+1",2.5\n'
    """

    def harmless(cell: object) -> object:
        return for_spreadsheet(cell) if isinstance(cell, str) else cell

    texts = table.select_dtypes(exclude="number").map(harmless)
    safe = table.assign(**{str(name): column for name, column in texts.items()}).rename(columns=harmless)
    text: str = safe.to_csv(index=False, quoting=QUOTE_NONNUMERIC)
    return text


def _figure(number: int, shown: Shown) -> _Figure:
    figure, data = shown.draw()
    svg = inline_svg(figure, f"f{number}-", f"{shown.section}: {shown.caption}")
    name = f"{number:02d}-{_file_name(shown.section)}"
    return _Figure(name, shown.caption, svg, _data_url(data), shown.folded)


def _table(title: str, table: pd.DataFrame) -> _Table:
    rows = list(table.astype(object).itertuples(index=False, name=None))
    return _Table(title, _file_name(title), [str(name) for name in table.columns], rows, _data_url(table))


def _data_url(table: pd.DataFrame) -> str:
    return "data:text/csv;charset=utf-8," + quote(csv(table), safe=",.:;()[]+- ")


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40]


@cache
def _asset(name: str) -> str:
    return (files("entropy_probe.reports") / name).read_text("utf-8")
