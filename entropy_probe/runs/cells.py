"""What the file of a cell holds: its columns with their units, and a checksum over every byte."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = 3
"""Version of the layout of a run directory."""


@dataclass(frozen=True)
class Column:
    """A column of the table of a cell."""

    name: str
    dtype: pa.DataType
    unit: str
    meaning: str


_TEXT, _COUNT, _SINGLE, _DOUBLE = pa.string(), pa.int64(), pa.float32(), pa.float64()
COLUMNS = (
    Column("prompt", _TEXT, "", "text that was drawn"),
    Column("seed", _COUNT, "", "of the noise that the sampling began with"),
    Column("height", _COUNT, "pixels", "of the image"),
    Column("width", _COUNT, "pixels", "of the image"),
    Column("law", _TEXT, "", "name of the scaling law that was applied"),
    Column("step", _COUNT, "", "of the sampling, from 0"),
    Column("timestep", _DOUBLE, "", "what the scheduler calls the step: from noise, large, to image, 0"),
    Column("branch", _TEXT, "", "of the guidance: `cond`, `uncond` or, with PAG, `perturbed`"),
    Column("layer", _TEXT, "", "name of the attention module in the denoiser"),
    Column("kind", _TEXT, "", "`self`, `cross` or `joint`"),
    Column("axes", _TEXT, "", "what the tokens are spread over: `spatial`, `temporal`, ..."),
    Column("head", _COUNT, "", "number of the attention head, from 0"),
    Column("tokens", _COUNT, "tokens", "N of the scaling laws: the tokens of the image in this layer"),
    Column("query_tokens", _COUNT, "tokens", "rows of the attention matrix"),
    Column("key_tokens", _COUNT, "tokens", "columns of the attention matrix"),
    Column("training_tokens", _DOUBLE, "tokens", "T of the scaling laws; NaN where it is not known"),
    Column("scale", _DOUBLE, "1", "the model's own factor of the logits, usually 1/sqrt(head width)"),
    Column("scale_factor", _DOUBLE, "1", "g of the measured curve H(g); 1 is the sampling itself, under its law"),
    Column("rows", _COUNT, "rows", "of the attention matrix that the means are over"),
    Column("entropy", _SINGLE, "nats", "mean over the rows"),
    Column("entropy_std", _SINGLE, "nats", "standard deviation over the rows"),
    Column("entropy_se", _SINGLE, "nats", "standard error of the mean, by the choice of rows; 0 if all are measured"),
    Column("logit_variance", _SINGLE, "nats^2", "variance of the logits over the keys, mean over the rows"),
    Column(
        "attention_distance", _SINGLE, "image diagonals", "root mean square distance attended to; NaN off the image"
    ),
    Column("image_mass", _SINGLE, "1", "share of a joint attention that goes to image tokens; NaN elsewhere"),
    Column("mass_entropy", _SINGLE, "nats", "of the choice between image and text"),
    Column("image_entropy", _SINGLE, "nats", "among the image tokens, rows weighed by their image mass"),
    Column("text_entropy", _SINGLE, "nats", "among the others, rows weighed by the mass there"),
)
"""The columns of a cell, in their order."""

_NOTES = "entropy_probe.cell"
_DIGITS = 32
_MARK = b"blake2b:"
_BLANK = b"0" * _DIGITS

SCHEMA = pa.schema(
    [pa.field(c.name, c.dtype, metadata={"unit": c.unit, "description": c.meaning}) for c in COLUMNS],
    metadata={"entropy_probe.format": str(FORMAT)},
)


@dataclass(frozen=True)
class Notes:
    """What stands beside the table of a cell, in the metadata of its file.

    Attributes:
        cell: its name; a file that was given another one is known by it.
        image: the checksum of its image.
        batch: names of the cells that were sampled together, which decides the last digits and the choice of rows.
    """

    cell: str
    image: str
    batch: tuple[str, ...]


def encode(frame: pd.DataFrame, notes: Notes) -> bytes:
    """The parquet file of a cell, from a frame with all of `COLUMNS`."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        writer.write_table(pa.Table.from_pandas(frame[SCHEMA.names], schema=SCHEMA, preserve_index=False))
        writer.add_key_value_metadata(
            {_NOTES: json.dumps(asdict(notes)), "entropy_probe.checksum": (_MARK + _BLANK).decode()}
        )
    return _sealed(sink.getvalue())


def decode(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table of a file that is `whole`."""
    return pq.read_table(pa.BufferReader(content), columns=columns)


def notes(content: bytes) -> Notes | None:
    """The notes of a file; None if it is not to the bit what `encode` gave, or never was of its making."""
    if not whole(content):
        return None
    try:
        told = pq.read_metadata(pa.BufferReader(content))
        fields = json.loads(told.metadata[_NOTES.encode()])
        found = Notes(str(fields["cell"]), str(fields["image"]), tuple(map(str, fields["batch"])))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    return found if told.schema.to_arrow_schema().equals(SCHEMA) else None


def whole(content: bytes) -> bool:
    """Whether a file is to the bit what `encode` gave, without parsing any of it."""
    at = content.rfind(_MARK) + len(_MARK)
    return at >= len(_MARK) and _sealed(content[:at] + _BLANK + content[at + _DIGITS :]) == content


def digest(content: bytes) -> str:
    """Checksum of a file: 128 bits of BLAKE2b, in hexadecimal."""
    return hashlib.blake2b(content, digest_size=_DIGITS // 2).hexdigest()


def _sealed(content: bytes) -> bytes:
    """A file with its checksum in place; as in a tar header, zeros stand for it while it is computed."""
    at = content.rfind(_MARK + _BLANK) + len(_MARK)
    return content[:at] + digest(content).encode() + content[at + _DIGITS :]
