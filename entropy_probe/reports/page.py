"""Render figures, tables and settings as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
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

from entropy_probe.escape import for_file_name, for_spreadsheet
from entropy_probe.plots import Panel, Plot, inline_svg, page_theme
from entropy_probe.plots.numbers import UNKNOWN
from entropy_probe.reports.gallery import Gallery


@dataclass(frozen=True)
class Shown:
    """A figure of a page.

    Attributes:
        section: title of its section.
        caption: text under the figure.
        draw: returns the figure, and the data for its CSV file.
        folded: whether the figure is hidden until the reader opens it.
        intro: text under the title of the section, shown once.
    """

    section: str
    caption: str
    draw: Callable[[], Plot]
    folded: bool = False
    intro: str = ""


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
        notice: a warning above everything else.
        summary: short texts by title, at the top.
        alerts: warnings on what the results cannot show.
        overview: the main table.
        overview_note: text under the main table.
        gallery: the sampled images.
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
    notice: str = ""
    summary: Mapping[str, str] = field(default_factory=dict)
    alerts: Sequence[str] = ()
    overview: pd.DataFrame = field(default_factory=pd.DataFrame)
    overview_note: str = ""
    gallery: Gallery | None = None
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
    wide: bool


class _Group(NamedTuple):
    title: str
    span: int


class _Table(NamedTuple):
    title: str
    name: str
    groups: list[_Group]
    columns: list[str]
    numeric: list[bool]
    rows: list[list[str]]
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
            intros={shown.section: shown.intro for shown in content.shown if shown.intro},
            tables=[_table(title, table) for title, table in content.tables.items()],
            overview=_table("Overview", content.overview) if len(content.overview) else None,
            images_csv=_data_url(content.gallery.table) if content.gallery else "",
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


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with one level of columns: the names of two levels are joined.

    Examples:
        >>> list(flat(pd.DataFrame({("", "layer"): ["mid"], ("64 px", "H"): ["3.1"]})))
        ['layer', '64 px: H']
    """
    if table.columns.nlevels == 1:
        return table
    return table.set_axis([f"{group}: {name}" if group else name for group, name in table.columns], axis=1)


NUMBER = re.compile(r"(?:at (?:least|most) |[<>] )?[-+]?[\d,.]+(?: to [-+]?[\d.]+| [▲▼=])?")
"""A number or an interval in a table, with its bound or its mark."""


def is_numeric(column: pd.Series) -> bool:
    """Return whether every cell of a column is a number, an interval or unknown.

    Examples:
        >>> is_numeric(pd.Series(["-0.1 to +0.2", "–"])), is_numeric(pd.Series(["32x48", "64"]))
        (True, False)
    """
    return all(NUMBER.fullmatch(text) or text == UNKNOWN for text in map(str, column))


def _figure(number: int, shown: Shown) -> _Figure:
    figure, data = shown.draw()
    svg = inline_svg(figure, f"f{number}-", f"{shown.section}: {shown.caption}")
    name = f"{number:02d}-{for_file_name(shown.section)}"
    return _Figure(name, shown.caption, svg, _data_url(data), shown.folded, not isinstance(shown.draw, Panel))


def _table(title: str, table: pd.DataFrame) -> _Table:
    names, groups = [str(name) for name in table.columns], []
    if table.columns.nlevels > 1:
        names = [str(name) for _, name in table.columns]
        for group, columns in itertools.groupby(table.columns, key=lambda column: column[0]):
            groups.append(_Group(str(group), len(list(columns))))
    # Sizes are names, and the first column names the row.
    numeric = [
        place > 0 and not name.startswith("size") and is_numeric(table.iloc[:, place])
        for place, name in enumerate(names)
    ]
    rows = [
        [str(cell).replace("-", "−") if is_number else str(cell) for cell, is_number in zip(row, numeric, strict=True)]
        for row in table.itertuples(index=False, name=None)
    ]
    return _Table(title, for_file_name(title), groups, names, numeric, rows, _data_url(table))


def _data_url(table: pd.DataFrame) -> str:
    return "data:text/csv;charset=utf-8," + quote(csv(flat(table)), safe=",.:;()[]+- ")


@cache
def _asset(name: str) -> str:
    return (files("entropy_probe.reports") / name).read_text("utf-8")
