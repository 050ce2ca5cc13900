"""Write the figures and tables of a report for a paper: one panel per file, at the width of a column."""

from __future__ import annotations

import re
from pathlib import Path

from entropy_probe import plots
from entropy_probe.escape import for_file_name
from entropy_probe.plots import FORMATS, WIDTHS, Format, Panel, Width, one_of
from entropy_probe.reports.results import RunResults
from entropy_probe.reports.run_details import run_tables
from entropy_probe.reports.run_figures import run_figures
from entropy_probe.reports.saved_files import SavedFile, write_files
from entropy_probe.reports.summary import overview
from entropy_probe.reports.table_files import MARK, latex, markdown
from entropy_probe.runs import open_location
from entropy_probe.runs.files import make_folder


def save_figures(
    results: RunResults,
    folder: str | Path,
    format: Format = "pdf",
    width: Width = "single",
    own_folder: bool = False,
) -> list[Path]:
    """Write every figure with one panel, the images of the first prompt, and every table.

    Figures are 3.3 (`single`) or 6.9 inches (`double`) wide, with text of at least 7 points and embedded fonts. Tables
    are in LaTeX (`.tex`) and Markdown (`.md`).

    Args:
        results: the results of a run.
        folder: the folder to write to. It is created.
        format: `pdf`, `png` (600 dots per inch) or `svg`.
        width: `single` or `double` column.
        own_folder: whether this package owns all names in the folder, as in a run directory.

    Returns:
        The paths of the files.

    Raises:
        InputError: if the format or the width is unknown, the folder cannot be written, or a file that is not of this
            package has one of the names.
    """
    one_of("format", format, FORMATS)
    one_of("width", width, tuple(WIDTHS))
    target = open_location(folder)
    files = {target / name: file for name, file in _figure_files(results, format, WIDTHS[width]).items()}
    files |= {target / name: file for name, file in _table_files(results).items()}
    make_folder(target)
    write_files(files, own_folder=target if own_folder else None)
    return list(files)


def _table_files(results: RunResults) -> dict[str, SavedFile]:
    """Return the tables by file name."""
    tables = {"overview": overview(results)} if results.outcome else {}
    files = {}
    for title, table in {**tables, **run_tables(results)}.items():
        name = for_file_name(re.split("[,:;]", title)[0])
        for suffix, write in (("tex", latex), ("md", markdown)):
            files[f"table-{name}.{suffix}"] = SavedFile(write(table, title).encode(), MARK.encode())
    return files


def _figure_files(results: RunResults, format: Format, width: float) -> dict[str, SavedFile]:
    """Return the figures by file name."""
    mark = b"entropy-probe"
    files = {}
    with plots.print_theme():
        for shown in run_figures(results):
            if isinstance(shown.draw, Panel):
                figure, _ = shown.draw(width)
                name = re.sub(r"[^A-Za-z0-9.=_-]+", "-", shown.draw.name)
                files[f"{name}.{format}"] = SavedFile(plots.figure_bytes(figure, format), mark)
        strip, _ = plots.image_strip(results.sampled, results.sampled.grid.prompts[0], width)
        files[f"images.{format}"] = SavedFile(plots.figure_bytes(strip, format), mark)
    return files
