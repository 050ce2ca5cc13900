"""Record which process holds a lock, for the message of a process that waits for it.

The record is a separate file, because waiting for a lock empties the lock file. It is only for people: the lock itself
belongs to the operating system.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from entropy_probe.errors import InputError
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, Count, from_strict_json, read_bounded, to_strict_json


@dataclass(frozen=True)
class _Holder:
    """A process that holds a lock, and since when."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    host: Annotated[str, Field(max_length=255)]
    process: Count
    since: Annotated[str, Field(max_length=40)]


def record_holder(path: Path) -> None:
    """Record that this process holds the lock of a file. A failure, such as a full disk, is ignored.

    The record is always created new: a symbolic link with its name is removed and not followed.
    """
    since = datetime.now(timezone.utc).isoformat(sep=" ", timespec="seconds")
    text = to_strict_json(asdict(_Holder(socket.gethostname(), os.getpid(), since)))
    with suppress(OSError, InputError):
        forget_holder(path)
        with _record(path).open("x", encoding="utf-8") as file:
            file.write(text)


def forget_holder(path: Path) -> None:
    """Remove the record of the lock of a file."""
    with suppress(OSError):
        _record(path).unlink(missing_ok=True)


def holder(path: Path) -> str:
    """Say which process holds the lock of a file.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     holder(Path(folder) / "grid.json")
    'another process holds'
    """
    with suppress(InputError):
        found = from_strict_json(_Holder, read_bounded(_record(path), 10_000))
        return f"process {found.process} on {found.host} holds since {found.since}"
    return "another process holds"


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.holder")
