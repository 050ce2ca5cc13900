"""Ask what a path is that may be any text, too long for a file name or with a NUL byte, and change the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def exists(path: str | Path) -> bool:
    """Return whether there is a file, a folder or anything else.

    >>> exists("a" * 300), exists("/dev/null")
    (False, True)
    """
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def is_file(path: str | Path) -> bool:
    """Return whether there is a regular file.

    >>> is_file("a" * 300), is_file("with a NUL byte \\0"), is_file("/dev/null")
    (False, False, False)
    """
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Return whether there is a folder.

    >>> is_folder("a" * 300), is_folder(".")
    (False, True)
    """
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


@contextmanager
def working_folder(folder: str | Path) -> Iterator[None]:
    """Work in another folder: `contextlib.chdir`, which Python 3.10 does not have.

    >>> with working_folder("/"):
    ...     Path.cwd().name
    ''
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
