"""Write the files of a report. A file that this package did not write is never replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from entropy_probe.errors import InputError
from entropy_probe.runs import write_atomically
from entropy_probe.runs.files import report_write_errors

PAGE_MARK = b'<meta name="generator" content="entropy-probe">'
"""Part of every page of this package."""


@dataclass(frozen=True)
class SavedFile:
    """The content of a file.

    Attributes:
        content: the bytes to write.
        mark: bytes that every file of this kind contains, and that files of others do not.
    """

    content: bytes
    mark: bytes


def write_files(files: Mapping[Path, SavedFile], own_folder: Path | None = None) -> None:
    """Write files atomically. Nothing is written if one of them would replace a file without its mark.

    Args:
        files: the files by path.
        own_folder: folder in which this package owns all names, such as a run directory.

    Raises:
        InputError: if a file of somebody else has one of the names, or a folder cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "notes.html"
    ...     _ = path.write_text("my notes")
    ...     write_files({path: SavedFile(PAGE_MARK, PAGE_MARK)})
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: .../notes.html exists and was not written by entropy-probe: choose another ...
    """
    for path, file in files.items():
        if own_folder is not None and path.parent == own_folder:
            continue
        with report_write_errors(path):
            foreign = path.is_file() and file.mark not in path.read_bytes()
        if foreign:
            raise InputError(
                f"{path} exists and was not written by entropy-probe: choose another name, or delete the file"
            )
    for path, file in files.items():
        write_atomically(path, file.content)
