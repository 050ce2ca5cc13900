"""A run directory: a manifest, and one parquet file and one image per finished cell, each written atomically."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import pyarrow as pa
from PIL import Image
from pydantic import Field

from entropy_probe.errors import InputError
from entropy_probe.runs import cells
from entropy_probe.runs.cells import FORMAT
from entropy_probe.runs.files import (
    claim,
    is_temporary,
    make_folder,
    refusal,
    replace_file,
    tidy,
    write_atomically,
)
from entropy_probe.runs.grid import Cell
from entropy_probe.strict_json import from_strict_json, read_bounded, to_strict_json
from entropy_probe.version import __version__

_Name = Annotated[str, Field(max_length=4096)]
_Count = Annotated[int, Field(ge=1, le=2**31)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Manifest:
    """What every cell of a run directory has in common; cells of another kind are not mixed into it."""

    model: _Name
    fingerprint: _Name
    pipeline: _Name
    dtype: _Name
    training_size: tuple[_Count, _Count]
    steps: _Count
    guidance_scale: _Number
    rows: _Count | Literal["all", "auto"]
    scale_factors: Annotated[tuple[_Number, ...], Field(max_length=1000)]
    versions: Annotated[dict[_Name, _Name], Field(max_length=100)]
    hardware: _Name
    format: int = FORMAT

    _IDENTITY = ("fingerprint", "dtype", "steps", "guidance_scale", "rows", "scale_factors")

    def differences(self, other: Manifest) -> list[str]:
        """What keeps cells of the two apart, in words."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} {mine[name]!r} instead of {theirs[name]!r}"
            for name in self._IDENTITY
            if mine[name] != theirs[name]
        ]

    def changes(self, now: Manifest) -> list[str]:
        """What these cells were made with and those of `now` are not, which tells in the last digits only."""
        known = {**self.versions, "hardware": self.hardware}
        today = {**now.versions, "hardware": now.hardware}
        return [f"{name} {known[name]}, not {today.get(name)}" for name in known if known[name] != today.get(name)]


@dataclass(frozen=True)
class State:
    """A cell on disk: what is wrong with it, or the names of the cells that it was sampled with."""

    fault: Literal["missing", "damaged"] | None
    batch: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run; docs/run-directory.md says what they hold."""

    path: Path

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.path / "manifest.json"

    def create(self, manifest: Manifest) -> None:
        """Make the folder, or take up one of the same model and settings.

        Raises:
            InputError: if the folder belongs to another model, other settings or another version, or cannot be written.
        """
        text = to_strict_json(asdict(manifest))
        try:
            from_strict_json(Manifest, text)
        except InputError as error:
            raise InputError(f"these settings cannot be kept: {error}") from error
        with refusal(self.path):
            if self.path.is_file():
                raise InputError(f"{self.path} is a file: choose a folder")
            foreign = self.path.is_dir() and any(map(_foreign, self.path.iterdir()))
            # In this order: another process may be making the run, and writes its manifest before anything else.
            if foreign and not self.manifest_path.exists():
                raise InputError(f"{self.path} is neither empty nor a run of entropy-probe: choose another folder")
        for folder in ("cells", "images", "failed"):
            if (self.path / folder).is_symlink():
                raise InputError(f"{self.path / folder} is a link that leads out of the run: put a folder in its place")
            make_folder(self.path / folder)
        with claim([self.manifest_path]):
            if not self.manifest_path.exists():
                replace_file(self.manifest_path, text.encode())
        there = self.manifest()
        if differences := there.differences(manifest):
            raise InputError(
                f"{self.path} holds another run, with {'; '.join(differences)}: choose another folder or delete it"
            )
        if changed := there.changes(manifest):
            warnings.warn(
                f"{self.path} was begun with {'; '.join(changed)}: new cells may differ in their last digits",
                stacklevel=3,
            )

    def manifest(self) -> Manifest:
        """The manifest of an existing run.

        Raises:
            InputError: if there is none, it is damaged, or it is of another version.
        """
        if not self.manifest_path.is_file():
            raise InputError(
                f"{self.path} is no run directory: it has no manifest.json (make one with entropy-probe sweep)"
            )
        text = self.read_text("manifest.json")
        self._check_format(text)
        try:
            return from_strict_json(Manifest, text)
        except InputError as error:
            raise InputError(f"{self.manifest_path} is damaged: {error}") from error

    def _check_format(self, text: str) -> None:
        """Another version may have other fields, so this comes before they are looked at."""
        try:
            fields = json.loads(text)
            written, by = int(fields["format"]), str(fields["versions"]["entropy-probe"])[:40]
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return
        if written < FORMAT:
            raise InputError(
                f"{self.path} has layout {written}, from before entropy-probe 0.1.0 was released, and layout {FORMAT} "
                "is the first that a release reads: sample anew into another folder"
            )
        if written > FORMAT:
            raise InputError(
                f"{self.path} has layout {written}, this is entropy-probe {__version__} and reads layout {FORMAT}: "
                f"install the version that wrote it, {by!r}"
            )

    def cell_path(self, cell: Cell) -> Path:
        """Where the table of a cell is."""
        return self._table_path(cell.name)

    def image_path(self, cell: Cell) -> Path:
        """Where the image of a cell is."""
        return self.path / "images" / f"{cell.name}.png"

    def failure_path(self, cell: Cell) -> Path:
        """Where the reason is why a cell could not be sampled."""
        return self.path / "failed" / f"{cell.name}.json"

    def failures(self, wanted: Iterable[Cell]) -> dict[Cell, str]:
        """Those of some cells that could not be sampled, with the reason, as far as it is noted."""
        found = {}
        for cell in wanted:
            with suppress(InputError, ValueError, KeyError, TypeError):
                told = json.loads(read_bounded(self.failure_path(cell)))
                found[cell] = " ".join(str(told["reason"]).split())[:300]
        return found

    def claim(self, wanted: Iterable[Cell], *, wait: bool) -> AbstractContextManager[bool]:
        """Whether these cells are this process's own to sample; see `files.claim`."""
        return claim(map(self.cell_path, wanted), wait=wait)

    def state(self, cell: Cell) -> State:
        """How a cell and its image are on disk.

        Raises:
            InputError: if they cannot be read.
        """
        content = _read(self.cell_path(cell))
        if content is None:
            return State("missing")
        notes = cells.notes(content)
        if notes is None:
            return State("damaged")
        image = _read(self.image_path(cell))
        if notes.cell != cell.name or image is None or cells.digest(image) != notes.image:
            return State("damaged")
        return State(None, notes.batch)

    def save(self, cell: Cell, frame: pd.DataFrame, image: Image.Image, batch: Sequence[Cell] = ()) -> None:
        """Write a cell that is claimed, the image first: a cell counts from the moment its table is there.

        Args:
            cell: the cell.
            frame: its table.
            image: its image.
            batch: what was sampled together; the cell alone if nothing is given.
        """
        sink = io.BytesIO()
        image.save(sink, format="PNG")
        image = sink.getvalue()
        replace_file(self.image_path(cell), image)
        notes = cells.Notes(cell.name, cells.digest(image), tuple(c.name for c in batch or [cell]))
        replace_file(self.cell_path(cell), cells.encode(frame, notes))
        self.failure_path(cell).unlink(missing_ok=True)

    def fail(self, cell: Cell, reason: str) -> None:
        """Note why a cell that is claimed could not be sampled."""
        replace_file(self.failure_path(cell), to_strict_json({**asdict(cell), "reason": reason}).encode())

    def read(self, wanted: Iterable[Cell], columns: list[str] | None = None) -> pd.DataFrame:
        """The tables of some cells, one below the other.

        Raises:
            InputError: naming a cell that is missing or damaged.
        """
        return pa.concat_tables([self._table(cell, columns) for cell in wanted]).to_pandas()

    def _table(self, cell: Cell, columns: list[str] | None) -> pa.Table:
        content = _read(self.cell_path(cell))
        if content is None or cells.notes(content) is None:
            state = "missing" if content is None else "damaged"
            raise InputError(f"{self.cell_path(cell)} is {state}: run the sweep again to sample it")
        return cells.decode(content, columns)

    def tidy(self) -> None:
        """Remove what killed processes left behind."""
        tidy(self.path)
        tidy(self.path / "cells")
        for name in ("images", "failed"):
            # What lies there is written under the claim of its cell.
            tidy(self.path / name, lambda path: self._table_path(path.stem))

    def _table_path(self, name: str) -> Path:
        return self.path / "cells" / f"{name}.parquet"

    def read_text(self, name: str) -> str:
        """A text file of the run.

        Raises:
            InputError: if it is not there, too long, or no text.
        """
        path = self.path / name
        if not path.exists():
            raise InputError(f"{self.path} has no {name}")
        return read_bounded(path)

    def write(self, name: str, text: str) -> Path:
        """Write a text file of the run atomically."""
        path = self.path / name
        write_atomically(path, text.encode())
        return path


def _foreign(path: Path) -> bool:
    """Whether something in a folder without manifest says that the folder is not ours to fill."""
    return any(path.iterdir()) if path.is_dir() else not is_temporary(path)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
