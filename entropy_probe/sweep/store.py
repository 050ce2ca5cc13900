"""A run directory: a manifest, and one parquet file and one picture per finished cell, each written atomically."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from entropy_probe.errors import InputError
from entropy_probe.strict_json import to_strict_json
from entropy_probe.sweep.grid import Cell

FORMAT = 1
"""Version of the layout of a run directory."""


@dataclass(frozen=True)
class Manifest:
    """What every cell of a run directory has in common; cells of another kind are not mixed into it."""

    model: str
    fingerprint: str
    pipeline: str
    dtype: str
    training_size: tuple[int, int]
    steps: int
    guidance_scale: float
    rows: int | str
    multipliers: tuple[float, ...]
    versions: dict[str, str]
    hardware: str
    format: int = FORMAT

    _IDENTITY = ("format", "fingerprint", "dtype", "steps", "guidance_scale", "rows", "multipliers")

    def differences(self, other: Manifest) -> list[str]:
        """What keeps cells of the two apart, in words."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} {mine[name]!r} instead of {theirs[name]!r}"
            for name in self._IDENTITY
            if mine[name] != theirs[name]
        ]


class RunDirectory:
    """The files of a run.

    Raises:
        InputError: if the folder cannot be written, or its manifest cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.path / "manifest.json"

    def create(self, manifest: Manifest) -> None:
        """Make the folder, or take up one of the same model and settings.

        Raises:
            InputError: if the folder belongs to another model, other settings or another version, or cannot be written.
        """
        if self.manifest_path.exists():
            differences = self.manifest().differences(manifest)
            if differences:
                raise InputError(
                    f"{self.path} holds another run, with {'; '.join(differences)}: choose another folder or delete it"
                )
            self._make_folders()
            return
        if self.path.is_dir() and any(not p.is_dir() or any(p.iterdir()) for p in self.path.iterdir()):
            raise InputError(f"{self.path} is neither empty nor a run of entropy-probe: choose another folder")
        self._make_folders()
        self.write("manifest.json", to_strict_json(asdict(manifest)))

    def _make_folders(self) -> None:
        for folder in (self.path / "cells", self.path / "images"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot write {self.path}: {error.strerror}") from error

    def manifest(self) -> Manifest:
        """The manifest of an existing run.

        Raises:
            InputError: if there is none, or it is of another version.
        """
        if not self.manifest_path.is_file():
            raise InputError(
                f"{self.path} is no run directory: it has no manifest.json (make one with entropy-probe sweep)"
            )
        try:
            fields = json.loads(self.manifest_path.read_text())
            if fields["format"] != FORMAT:
                raise InputError(
                    f"{self.path} has layout {fields['format']}, this version of entropy-probe reads layout {FORMAT}"
                )
            fields["training_size"] = tuple(fields["training_size"])
            fields["multipliers"] = tuple(fields["multipliers"])
            return Manifest(**fields)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.manifest_path} is damaged: {error!r}") from error

    def cell_path(self, cell: Cell) -> Path:
        """Where the table of a cell is."""
        return self.path / "cells" / f"{cell.name}.parquet"

    def image_path(self, cell: Cell) -> Path:
        """Where the picture of a cell is."""
        return self.path / "images" / f"{cell.name}.png"

    def finished(self, cell: Cell) -> bool:
        """Whether a cell is there and whole; a damaged one is deleted, with a warning, so that it is done again."""
        path = self.cell_path(cell)
        whole = self.holds(cell)
        if path.exists() and not whole:
            warnings.warn(f"cell {path.name} is damaged and will be sampled again", stacklevel=2)
            path.unlink()
        return whole

    def holds(self, cell: Cell) -> bool:
        """Whether a cell is there and whole."""
        try:
            return pq.ParquetFile(self.cell_path(cell)).metadata.num_rows > 0 and self.image_path(cell).is_file()
        except (pa.ArrowInvalid, OSError):
            return False

    def save(self, cell: Cell, frame: pd.DataFrame, image: Image.Image) -> None:
        """Write a finished cell, the picture first: a cell counts from the moment its table is there."""
        write_atomically(self.image_path(cell), lambda file: image.save(file, format="PNG"))
        table = pa.Table.from_pandas(frame, preserve_index=False)
        write_atomically(self.cell_path(cell), lambda file: pq.write_table(table, file, compression="zstd"))

    def read(self, cells: Iterable[Cell], columns: list[str] | None = None) -> pd.DataFrame:
        """The tables of some cells, one below the other."""
        tables = [pq.read_table(self.cell_path(cell), columns=columns) for cell in cells]
        return pa.concat_tables(tables).to_pandas()

    def read_text(self, name: str) -> str:
        """A text file of the run.

        Raises:
            InputError: if it is not there.
        """
        try:
            return (self.path / name).read_text()
        except OSError as error:
            raise InputError(f"{self.path} has no {name}: {error.strerror}") from error

    def write(self, name: str, text: str) -> Path:
        """Write a text file of the run atomically."""
        path = self.path / name
        write_atomically(path, lambda file: file.write(text.encode()))
        return path


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: naming the file and the cause, such as a full disk.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        cause = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise InputError(f"cannot write {path}: {cause}") from error
