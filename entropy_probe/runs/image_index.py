"""List the images of a run in a table that a person or a spreadsheet can read: images/index.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import suppress
from io import StringIO
from pathlib import Path

from entropy_probe.errors import InputError
from entropy_probe.escape import for_spreadsheet
from entropy_probe.runs.files import lock, replace_file
from entropy_probe.runs.grid import Cell
from entropy_probe.strict_json import read_bounded

FILE = "index.csv"
COLUMNS = ("file", "prompt", "height", "width", "seed", "law")


def add_to_index(folder: Path, cells: Iterable[Cell]) -> None:
    """Add the images of cells to the index of a folder. The rows are sorted by file. A damaged index is replaced.

    Args:
        folder: the folder of the images.
        cells: finished cells.

    Raises:
        InputError: if the index cannot be written.
    """
    path, cells = folder / FILE, list(cells)
    if _read(path).keys() >= {f"{cell.name}.png" for cell in cells}:
        return
    with lock([path]):
        rows = _read(path)
        known = len(rows)
        for cell in cells:
            values = f"{cell.name}.png", for_spreadsheet(cell.prompt), *cell.size, cell.seed, for_spreadsheet(cell.law)
            rows.setdefault(values[0], [str(value) for value in values])
        if len(rows) > known:
            text = StringIO()
            csv.writer(text, lineterminator="\n").writerows([COLUMNS, *(rows[file] for file in sorted(rows))])
            replace_file(path, text.getvalue().encode())


def _read(path: Path) -> dict[str, list[str]]:
    """Return the rows of an index by file; none if it is missing or damaged."""
    with suppress(InputError, OSError, ValueError, csv.Error):
        if path.exists():
            columns, *rows = csv.reader(StringIO(read_bounded(path), newline=""))
            if tuple(columns) == COLUMNS and all(len(row) == len(COLUMNS) for row in rows):
                return {row[0]: row for row in rows}
    return {}
