"""Write files atomically, and lock them for one process.

A path may also be a `UPath` of an object store. There, every write is atomic and files cannot be locked.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from filelock import FileLock, Timeout

from entropy_probe.errors import InputError
from entropy_probe.interruption import delay_interrupt
from entropy_probe.paths import is_folder
from entropy_probe.runs.holders import forget_holder, holder, record_holder

PATIENCE = 5.0
"""Seconds after which a process that waits for a lock warns."""


def open_location(location: str | Path) -> Path:
    """Return the path of a folder or file. A URL of any file system that fsspec supports gives a `UPath`.

    Args:
        location: path such as "my-run", or URL such as "s3://bucket/my-run".

    Raises:
        InputError: if the URL cannot be used, or its client is not installed.

    >>> open_location("my-run").name
    'my-run'
    """
    if isinstance(location, Path) or "://" not in str(location):
        return Path(location)
    try:
        from upath import UPath

        path = UPath(location, use_listings_cache=False)  # other processes write there too
        path.exists()  # fail now if the client is missing or the store does not answer
    except ImportError as error:
        raise InputError(
            f'{location} needs a client that is not installed ({error}): pip install "entropy-probe[remote]"'
        ) from error
    except Exception as error:  # every client has its own error classes
        raise InputError(f"cannot use {location}: {_short_message(error)}") from error
    return Path(path.path) if path.protocol in ("file", "local") else cast(Path, path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a complete file or nothing. If two processes write it at the same time, one waits for the other.

    Raises:
        InputError: if the file cannot be written, for example because the disk is full.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "fit.json", b"{}")
    ...     (Path(folder) / "fit.json").read_text()
    '{}'
    """
    check_file_name(path)
    with lock([path]):
        replace_file(path, content)


def check_file_name(path: Path) -> None:
    """Check that a path can be the path of a file.

    Raises:
        InputError: if it has no file name, such as an empty text.

    >>> check_file_name(Path(""))
    Traceback (most recent call last):
        ...
    entropy_probe.errors.InputError: cannot write '.': give the name of a file
    """
    if not path.name or (not _is_remote(path) and is_folder(path)):
        raise InputError(f"cannot write {str(path)!r:.200}: give the name of a file")


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that this process has locked: write a temporary file, flush it to the disk, then rename it.

    The name of the temporary file is fixed, so the next write replaces what a killed process left. The file is always
    created new: a symbolic link with its name is removed and not followed.

    Raises:
        InputError: if the file cannot be written, for example because the disk is full.
    """
    temporary = _temporary_path(path)
    with report_write_errors(path):
        if _is_remote(path):
            path.write_bytes(content)
            return
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def lock(paths: Iterable[Path], *, wait: bool = True) -> Iterator[bool]:
    """Lock files for this process until the context ends. Yield whether all were locked.

    A lock belongs to the operating system and ends with its process, however the process ends. Object stores have no
    locks: there, two processes that write a cell at the same time write the same bytes.

    A process that waits for more than `PATIENCE` seconds warns with the process that holds the lock, and since when.

    Args:
        paths: the files. All processes lock them in the same order, which prevents deadlocks.
        wait: wait until other processes release the files.

    Raises:
        InputError: if the folder is not writable.
    """
    local = sorted(path for path in paths if not _is_remote(path))
    locks = {path: FileLock(_lock_path(path)) for path in local}
    try:
        yield all(_acquire(one, path, wait) for path, one in locks.items())
    finally:
        with delay_interrupt():  # otherwise files of a lock could stay
            for path, one in locks.items():
                if one.is_locked:
                    forget_holder(path)
                    # Remove the file before the release: a waiting process sees that it is gone and creates a new one.
                    Path(one.lock_file).unlink(missing_ok=True)
                    one.release()


def remove_leftovers(folder: Path, owner: Callable[[Path], Path] = lambda path: path) -> None:
    """Remove temporary files of processes that were killed. Files locked by a running process stay.

    Args:
        folder: folder to clean.
        owner: function that returns the file whose lock protects a given file. By default, the file itself.
    """
    if _is_remote(folder):
        return
    suffixes = ("lock", "part", "holder")
    for path in {path.with_name(path.stem[1:]) for suffix in suffixes for path in folder.glob(f".*.{suffix}")}:
        with lock([owner(path)], wait=False) as locked:
            if locked:
                _temporary_path(path).unlink(missing_ok=True)
                forget_holder(path)


def make_folder(path: Path) -> None:
    """Create a folder if it does not exist. Object stores have no folders.

    Raises:
        InputError: if the folder cannot be created.
    """
    with report_write_errors(path):
        if not _is_remote(path):
            path.mkdir(parents=True, exist_ok=True)


def is_temporary(path: Path) -> bool:
    """Return whether a file is a lock file or a temporary file of an unfinished write.

    >>> is_temporary(Path(".manifest.json.lock"))
    True
    """
    return path.name.startswith(".") and path.suffix in (".lock", ".part", ".holder")


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Convert errors of the operating system, or of the client of an object store, to one-line errors.

    Raises:
        InputError: with the path and the cause.
    """
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        cause = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise InputError(f"cannot write {path}: {cause}") from error
    except Exception as error:  # ValueError: a file name with NUL. Others: clients of object stores
        if not (_is_remote(path) or isinstance(error, ValueError)):
            raise
        raise InputError(f"cannot write {path}: {_short_message(error)}") from error


def _short_message(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _is_remote(path: object) -> bool:
    return not isinstance(path, Path)


def _acquire(file_lock: FileLock, path: Path, wait: bool) -> bool:
    with report_write_errors(Path(file_lock.lock_file)):
        Path(file_lock.lock_file).parent.stat()  # FileLock would create a missing folder
        try:
            file_lock.acquire(timeout=PATIENCE if wait else 0)
        except Timeout:
            if not wait:
                return False
            warnings.warn(
                f"waiting for {path.name}, which {holder(path)}; end that process if it is stuck", stacklevel=2
            )
            file_lock.acquire(timeout=-1)
    record_holder(path)
    return True


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _sync_folder(folder: Path) -> None:
    """Flush the new name to the disk too. Windows cannot open folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
