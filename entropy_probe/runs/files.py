"""Files that are whole or not there, and claims on them that end with their process.

A path may also be a `UPath`, of an object store: there a file is whole by nature, and nothing can be claimed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from filelock import FileLock, Timeout

from entropy_probe.errors import InputError


def place(where: str | Path) -> Path:
    """The path of a folder or file, or what behaves like one for the URL of any file system that fsspec knows.

    Raises:
        InputError: if the URL cannot be used, or what it takes is not installed.
    """
    if isinstance(where, Path) or "://" not in str(where):
        return Path(where)
    try:
        from upath import UPath

        found = UPath(where, use_listings_cache=False)  # others write there too
        found.exists()  # asked now, so that a missing client, or a store that does not answer, is known now
    except ImportError as error:
        raise InputError(
            f"{where} needs a client that is not installed ({error}): pip install '.[remote]' in the clone of "
            "entropy-probe"
        ) from error
    except Exception as error:  # of the client of that store, which has errors of its own
        raise InputError(f"cannot use {where}: {_one_line(error)}") from error
    return Path(found.path) if found.protocol in ("file", "local") else cast(Path, found)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; of two processes that write it at once, one waits for the other.

    Raises:
        InputError: naming the file and the cause, such as a full disk.
    """
    with claim([path]):
        replace_file(path, content)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is claimed: under a temporary name, to the disk, and only then under its own.

    The temporary name is the same every time, so that what a killed process left is replaced by the next. It is made
    anew: a link that lies there under its name leads nowhere.

    Raises:
        InputError: naming the file and the cause, such as a full disk.
    """
    part = _part(path)
    with refusal(path):
        if _remote(path):
            path.write_bytes(content)
            return
        try:
            part.unlink(missing_ok=True)
            with part.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def claim(paths: Iterable[Path], *, wait: bool = True) -> Iterator[bool]:
    """Whether the files are this process's own to write until the context ends.

    A claim is a lock of the operating system on a file beside: it ends with its process, however that ends. Object
    stores have none: what is there is for everybody, and two that write a cell write the same.

    Args:
        paths: the files; always claimed in the same order, so that two processes never wait for each other.
        wait: until nobody else has a claim on them.

    Raises:
        InputError: if the folder cannot be written.
    """
    local = [path for path in paths if not _remote(path)]
    locks = [FileLock(_lock(path), timeout=-1 if wait else 0) for path in sorted(local)]
    try:
        yield all(_taken(lock) for lock in locks)
    finally:
        for lock in locks:
            if lock.is_locked:
                # Removed while it is held: whoever waits for it finds it gone, and asks anew.
                Path(lock.lock_file).unlink(missing_ok=True)
                lock.release()


def tidy(folder: Path, owner: Callable[[Path], Path] = lambda path: path) -> None:
    """Remove what killed processes left of their files; what a living one has claimed stays.

    Args:
        folder: where.
        owner: the file whose claim a file is written under; its own if none.
    """
    if _remote(folder):
        return
    for path in {path.with_name(path.stem[1:]) for mark in ("lock", "part") for path in folder.glob(f".*.{mark}")}:
        with claim([owner(path)], wait=False) as mine:
            if mine:
                _part(path).unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder where there is none; an object store has none, and would make a bucket.

    Raises:
        InputError: if it cannot be made.
    """
    with refusal(path):
        if not _remote(path):
            path.mkdir(parents=True, exist_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file is one that a claim or an unfinished write leaves."""
    return path.name.startswith(".") and path.suffix in (".lock", ".part")


@contextmanager
def refusal(path: Path) -> Iterator[None]:
    """An error of the operating system, or of the client of an object store, as one line.

    Raises:
        InputError: naming the file and the cause.
    """
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        cause = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise InputError(f"cannot write {path}: {cause}") from error
    except Exception as error:  # of the client of a store; here, ValueError for a name with NUL
        if not (_remote(path) or isinstance(error, ValueError)):
            raise
        raise InputError(f"cannot write {path}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _remote(path: object) -> bool:
    return not isinstance(path, Path)


def _taken(lock: FileLock) -> bool:
    try:
        with refusal(Path(lock.lock_file)):
            Path(lock.lock_file).parent.stat()  # a folder that is not there is an error: the lock would make it
            lock.acquire()
    except Timeout:
        return False
    return True


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _sync_folder(folder: Path) -> None:
    """The new name to the disk too; Windows has no handle on a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
