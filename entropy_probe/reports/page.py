"""The page: figures, tables and settings as one HTML file that asks nothing of the outside."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable, Sequence
from csv import QUOTE_NONNUMERIC
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.resources import files
from typing import NamedTuple
from urllib.parse import quote

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from entropy_probe.escape import for_spreadsheet
from entropy_probe.plots import figures, marks


@dataclass(frozen=True)
class Shown:
    """A figure of a page.

    Attributes:
        section: where it belongs.
        caption: what to look for in it.
        draw: draws it.
        folded: behind a summary, as many panels are.
        numbers: its CSV file, where that is not what can be read off the figure.
    """

    section: str
    caption: str
    draw: Callable[[], Figure]
    folded: bool = False
    numbers: Callable[[], pd.DataFrame] | None = None


@dataclass(frozen=True)
class Content:
    """What stands on a page.

    Attributes:
        title: the heading.
        verdict: sentences; `nothing` stands in their place where there are none.
        shown: the figures, those of a section one after the other.
        tables: by title.
        facts: how it was made.
        config: settings that make it again, as YAML.
        remark: what is not on the page.
        beside: files that were saved with it.
    """

    title: str
    verdict: Sequence[str]
    shown: Sequence[Shown]
    tables: dict[str, pd.DataFrame]
    facts: dict[str, str]
    config: str = ""
    remark: str = ""
    beside: str = ""
    nothing: str = field(default="There is nothing to compare yet.")


class _Figure(NamedTuple):
    name: str
    caption: str
    svg: str
    csv: str | None
    folded: bool


class _Table(NamedTuple):
    title: str
    name: str
    columns: list[str]
    rows: list[tuple[object, ...]]
    csv: str


def render(content: Content) -> str:
    """The page as text."""
    sections: dict[str, list[_Figure]] = {}
    with figures.page_theme():
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
            today=date.today().isoformat(),
            style=_asset("page.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def frame(text: str) -> str:
    """A page for a notebook, in a frame of its own."""
    return f'<iframe srcdoc="{html.escape(text)}" width="100%" height="900" style="border:0"></iframe>'


def csv(table: pd.DataFrame) -> str:
    """A table for spreadsheets, in which no text is a formula, nor the name of a column; nor a part of either.

    Texts are quoted, as a semicolon would begin another cell where these separate.
    """

    def harmless(cell: object) -> object:
        return for_spreadsheet(cell) if isinstance(cell, str) else cell

    texts = table.select_dtypes(["str", "object"]).map(harmless)
    told = table.assign(**{str(name): column for name, column in texts.items()}).rename(columns=harmless)
    text: str = told.to_csv(index=False, quoting=QUOTE_NONNUMERIC)
    return text


def _figure(number: int, shown: Shown) -> _Figure:
    figure = shown.draw()
    found = marks.marks(figure)
    svg = figures.inline_svg(figure, f"f{number}-", f"{shown.section}: {shown.caption}", found)
    numbers = shown.numbers() if shown.numbers else marks.table(found)
    name = f"{number:02d}-{_file_name(shown.section)}"
    return _Figure(name, shown.caption, svg, _data_url(numbers) if len(numbers) else None, shown.folded)


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
