"""A run directory: a manifest, and one parquet file and one image per finished cell, each written atomically."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from entropy_probe.errors import InputError
from entropy_probe.models import Clip, to_png
from entropy_probe.runs import cells, image_index
from entropy_probe.runs.files import (
    is_temporary,
    lock,
    make_folder,
    remove_leftovers,
    replace_file,
    report_write_errors,
    write_atomically,
)
from entropy_probe.runs.grid import Cell
from entropy_probe.runs.manifest import Manifest
from entropy_probe.runs.migration import upgrade_cell, upgrade_cells
from entropy_probe.strict_json import read_bounded, to_strict_json

Fault = Literal["missing", "damaged", "from another run"]
"""Why a cell cannot be used."""


@dataclass(frozen=True)
class CellState:
    """State of a cell on disk.

    Attributes:
        fault: "missing", "damaged" or "from another run", or None if the cell is complete.
        batch: names of the cells that were sampled in the same batch.
    """

    fault: Fault | None
    batch: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run. docs/run-directory.md describes their content.

    Attributes:
        path: folder, or `UPath` of an object store.
    """

    path: Path

    @property
    def manifest_path(self) -> Path:
        """Path of the manifest."""
        return self.path / "manifest.json"

    def create(self, manifest: Manifest) -> None:
        """Create the folder, or resume a run of the same model and settings.

        Raises:
            InputError: if the folder holds another model, other settings or another version, or is not writable.
        """
        text = _checked_text(manifest)
        self._check_folder()
        for folder in ("cells", "images", "failed"):
            if (self.path / folder).is_symlink():
                raise InputError(f"{self.path / folder} is a symbolic link out of the run: replace it by a folder")
            make_folder(self.path / folder)
        with lock([self.manifest_path]):
            if not self.manifest_path.exists():
                replace_file(self.manifest_path, text.encode())
        existing = self.manifest()
        if differences := existing.differences(manifest):
            raise InputError(
                f"{self.path} holds another run, with {'; '.join(differences)}: choose another folder, or delete it"
            )
        self.upgrade()
        if changes := existing.changes(manifest):
            warnings.warn(
                f"{self.path} was started with {'; '.join(changes)}: new cells may differ in their last digits",
                stacklevel=3,
            )

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            InputError: if it is missing, damaged, or has a format that this version cannot read.
        """
        try:
            found = self.manifest_path.is_file()
        except (OSError, ValueError):  # the name is too long, or contains NUL
            found = False
        if not found:
            raise InputError(
                f"{self.path!s:.300} is not a run directory, it has no manifest.json: create one with "
                "entropy-probe sweep"
            )
        text = self.read_text("manifest.json")
        try:
            return Manifest.from_json(text)
        except InputError as error:
            raise InputError(f"{self.manifest_path}: {error}") from error

    def upgrade(self) -> None:
        """Rewrite a run directory of entropy-probe 0.1.0 in the current format. Do nothing if it has it.

        The manifest is written last, so an interrupted upgrade is finished by the next call.

        Raises:
            InputError: if a file cannot be written.
        """
        text = self.manifest().to_json()
        if json.loads(self.read_text("manifest.json")).get("format", cells.FORMAT) == cells.FORMAT:
            return
        with lock([self.manifest_path]):
            upgrade_cells(self.path / "cells")
            replace_file(self.manifest_path, text.encode())

    def cell_path(self, cell: Cell) -> Path:
        """Path of the table of a cell."""
        return self._table_path(cell.name)

    def image_path(self, cell: Cell) -> Path:
        """Path of the image of a cell."""
        return self.path / "images" / f"{cell.name}.png"

    def failure_path(self, cell: Cell) -> Path:
        """Path of the file with the reason why a cell failed."""
        return self.path / "failed" / f"{cell.name}.json"

    def failures(self, wanted: Iterable[Cell]) -> dict[Cell, str]:
        """Return the cells that failed, with the recorded reason."""
        reasons = {}
        for cell in wanted:
            with suppress(InputError, ValueError, KeyError, TypeError):
                fields = json.loads(read_bounded(self.failure_path(cell)))
                reasons[cell] = " ".join(str(fields["reason"]).split())[:300]
        return reasons

    def lock(self, wanted: Iterable[Cell], *, wait: bool) -> AbstractContextManager[bool]:
        """Lock cells for this process; see `files.lock`."""
        return lock(map(self.cell_path, wanted), wait=wait)

    def state(self, cell: Cell) -> CellState:
        """Return the state of a cell and its image on disk.

        Raises:
            InputError: if a file cannot be read.
        """
        content = self._read_cell(cell)
        if content is None:
            return CellState("missing")
        metadata = cells.read_metadata(content)
        if metadata is None or (fault := self._fault(cell, metadata)):
            return CellState("damaged" if metadata is None else fault)
        image = _read(self.image_path(cell))
        if image is None or cells.checksum(image) != metadata.image:
            return CellState("damaged")
        return CellState(None, metadata.batch)

    def _fault(self, cell: Cell, metadata: cells.CellMetadata) -> Fault | None:
        """Return why an intact file is not the table of a cell of this run; None if it is."""
        if metadata.cell != cell.name:
            return "damaged"
        return "from another run" if metadata.run not in ("", self._identity) else None

    @cached_property
    def _identity(self) -> str:
        return self.manifest().identity()

    def save(self, cell: Cell, frame: pd.DataFrame, image: Image.Image | Clip, batch: Sequence[Cell] = ()) -> None:
        """Write a cell that is locked. The image is written first: a cell counts as finished once its table exists.

        Args:
            cell: the cell.
            frame: its table.
            image: its image, or the frames of its video.
            batch: cells that were sampled in the same batch. By default, the cell alone.
        """
        content = to_png((image,) if isinstance(image, Image.Image) else image)
        replace_file(self.image_path(cell), content)
        names = tuple(c.name for c in batch or [cell])
        metadata = cells.CellMetadata(cell.name, cells.checksum(content), names, self._identity)
        replace_file(self.cell_path(cell), cells.encode(frame, metadata))
        self.failure_path(cell).unlink(missing_ok=True)

    def save_failure(self, cell: Cell, reason: str) -> None:
        """Record why a cell that is locked could not be sampled."""
        replace_file(self.failure_path(cell), to_strict_json({**asdict(cell), "reason": reason}).encode())

    def index(self, finished: Iterable[Cell]) -> None:
        """Add the images of finished cells to images/index.csv."""
        image_index.add_to_index(self.path / "images", finished)

    def read(self, wanted: Iterable[Cell], columns: list[str] | None = None, *, curves: bool = True) -> pd.DataFrame:
        """Return the tables of cells as one table.

        Args:
            wanted: the cells.
            columns: names of columns; None reads all.
            curves: include the rows of the measured curves H(g), with `scale_factor` other than 1.

        Raises:
            InputError: if a cell is missing or damaged.
        """
        tables = (self._table(cell, columns) for cell in wanted)
        if not curves:  # before they are joined: most rows belong to curves
            tables = (table.filter(pc.field("scale_factor") == 1.0) for table in tables)
        return pa.concat_tables(tables).to_pandas(split_blocks=True, self_destruct=True)

    def remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed."""
        remove_leftovers(self.path)
        remove_leftovers(self.path / "cells")
        for name in ("images", "failed"):
            remove_leftovers(self.path / name, self._locked_file)

    def read_text(self, name: str) -> str:
        """Read a text file of the run.

        Raises:
            InputError: if it does not exist, is too long, or is not text.
        """
        path = self.path / name
        if not path.exists():
            raise InputError(f"{self.path} has no {name}")
        return read_bounded(path)

    def write(self, name: str, text: str) -> Path:
        """Write a text file of the run atomically and return its path."""
        path = self.path / name
        write_atomically(path, text.encode())
        return path

    def _check_folder(self) -> None:
        """Raise an InputError if the folder holds something else than a run."""
        with report_write_errors(self.path):
            if self.path.is_file():
                raise InputError(f"{self.path} is a file: choose a folder")
            foreign = self.path.is_dir() and any(map(_is_foreign, self.path.iterdir()))
            # Check the manifest last: another process may create this run now, and writes its manifest first.
            if foreign and not self.manifest_path.exists():
                raise InputError(
                    f"{self.path} is neither empty nor a run directory of entropy-probe: choose another folder"
                )

    def _read_cell(self, cell: Cell) -> bytes | None:
        content = _read(self.cell_path(cell))
        return None if content is None else upgrade_cell(content)

    def _table(self, cell: Cell, columns: list[str] | None) -> pa.Table:
        content = self._read_cell(cell)
        metadata = None if content is None else cells.read_metadata(content)
        if content is None or metadata is None:
            fault: Fault | None = "missing" if content is None else "damaged"
        else:
            fault = self._fault(cell, metadata)
        if fault:
            raise InputError(f"{self.cell_path(cell)} is {fault}: run the sweep again to sample it")
        assert content is not None
        return cells.decode(content, columns)

    def _locked_file(self, path: Path) -> Path:
        """Return the file whose lock protects a file in images or failed: the table of its cell, or the index."""
        return path if path.name == image_index.FILE else self._table_path(path.stem)

    def _table_path(self, name: str) -> Path:
        return self.path / "cells" / f"{name}.parquet"


def _checked_text(manifest: Manifest) -> str:
    """Return a manifest as JSON, or raise an InputError if it could not be read again."""
    try:
        text = manifest.to_json()
        Manifest.from_json(text)
    except InputError as error:
        raise InputError(f"cannot write these settings to the manifest: {error}") from error
    return text


def _is_foreign(path: Path) -> bool:
    """Return whether an entry of a folder without a manifest shows that the folder belongs to something else."""
    return any(path.iterdir()) if path.is_dir() else not is_temporary(path)


def _read(path: Path) -> bytes | None:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for its writer
            raise InputError(f"{path} is not a regular file: delete it")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
