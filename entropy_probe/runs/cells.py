"""The parquet file of one cell: its columns with units, its metadata, and a checksum over every byte."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = 4
"""Version of the layout of a run directory. `migration` reads the previous one."""


@dataclass(frozen=True)
class Column:
    """A column of the table of a cell."""

    name: str
    dtype: pa.DataType
    unit: str
    meaning: str


_TEXT, _COUNT, _SINGLE, _DOUBLE = pa.string(), pa.int64(), pa.float32(), pa.float64()
COLUMNS = (
    Column("prompt", _TEXT, "", "text that the image was sampled from"),
    Column("seed", _COUNT, "", "seed of the initial noise"),
    Column("height", _COUNT, "pixels", "image height"),
    Column("width", _COUNT, "pixels", "image width"),
    Column("law", _TEXT, "", "name of the scaling law that was applied"),
    Column("step", _COUNT, "", "sampling step, from 0"),
    Column("timestep", _DOUBLE, "", "timestep of the scheduler: large for noise, 0 for the image"),
    Column("branch", _TEXT, "", "branch of the guidance: `cond`, `uncond` or another, see models.md"),
    Column("layer", _TEXT, "", "name of the attention module in the denoiser"),
    Column("kind", _TEXT, "", "`self`, `shared`, `cross`, `joint`, `text` or `unknown`, see models.md"),
    Column("axes", _TEXT, "", "axes that the tokens extend over: `spatial`, `temporal`, ..."),
    Column("head", _COUNT, "", "index of the attention head, from 0"),
    Column("tokens", _COUNT, "tokens", "N of the scaling laws: image tokens in this layer"),
    Column("query_tokens", _COUNT, "tokens", "rows of the attention matrix"),
    Column("key_tokens", _COUNT, "tokens", "columns of the attention matrix"),
    Column("training_tokens", _DOUBLE, "tokens", "T: image tokens at the training size; NaN if unknown"),
    Column("scale", _DOUBLE, "1", "softmax scale of the model, usually 1/sqrt(head dimension)"),
    Column("scale_factor", _DOUBLE, "1", "g of the measured curve H(g); 1 is the sampled image itself, under its law"),
    Column("rows", _COUNT, "rows", "query rows that the means are computed from"),
    Column("entropy", _SINGLE, "nats", "attention entropy H, mean over the rows"),
    Column("entropy_std", _SINGLE, "nats", "standard deviation of the entropy over the rows"),
    Column("entropy_se", _SINGLE, "nats", "standard error of the mean from sampling rows; 0 if all rows are measured"),
    Column("logit_variance", _SINGLE, "nats^2", "variance of the logits over the keys, mean over the rows"),
    Column(
        "attention_distance", _SINGLE, "image diagonals",
        "root mean square distance between a token and the tokens it attends to; NaN for tokens without a position",
    ),
    Column("image_mass", _SINGLE, "1", "fraction of a joint attention on image tokens; NaN for other kinds"),
    Column("mass_entropy", _SINGLE, "nats", "entropy of the split between image and text tokens"),
    Column("image_entropy", _SINGLE, "nats", "entropy within the image tokens, rows weighted by their image mass"),
    Column("text_entropy", _SINGLE, "nats", "entropy within the text tokens, rows weighted by their text mass"),
)  # fmt: skip
"""The columns of a cell, in order."""

METADATA_KEY = "entropy_probe.cell"
_CHECKSUM_KEY = "entropy_probe.checksum"
_CHECKSUM_DIGITS = 32
_CHECKSUM_PREFIX = b"blake2b:"
_CHECKSUM_BLANK = b"0" * _CHECKSUM_DIGITS

SCHEMA = pa.schema(
    [pa.field(c.name, c.dtype, metadata={"unit": c.unit, "description": c.meaning}) for c in COLUMNS],
    metadata={"entropy_probe.format": str(FORMAT)},
)


@dataclass(frozen=True)
class CellMetadata:
    """Metadata in the file of a cell, in addition to its table.

    Attributes:
        cell: name of the cell. It detects files that were renamed.
        image: checksum of the image file.
        batch: names of the cells that were sampled in the same batch. The batch influences the last digits and the
            choice of query rows.
        run: see `Manifest.identity`. It detects files of another run. Empty in files of version 0.1.0.
    """

    cell: str
    image: str
    batch: tuple[str, ...]
    run: str = ""


def encode(frame: pd.DataFrame, metadata: CellMetadata) -> bytes:
    """Return the content of the parquet file of a cell.

    Args:
        frame: table with all of `COLUMNS`.
        metadata: metadata of the cell.
    """
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        writer.write_table(pa.Table.from_pandas(frame[SCHEMA.names], schema=SCHEMA, preserve_index=False))
        writer.add_key_value_metadata(
            {METADATA_KEY: json.dumps(asdict(metadata)), _CHECKSUM_KEY: (_CHECKSUM_PREFIX + _CHECKSUM_BLANK).decode()}
        )
    return with_checksum(sink.getvalue())


def decode(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """Return the table of an intact file.

    Args:
        content: content of the file.
        columns: columns to read. By default, all.
    """
    return pq.read_table(pa.BufferReader(content), columns=columns)


def read_metadata(content: bytes) -> CellMetadata | None:
    """Return the metadata of a file, or None if the file is damaged or was not written by `encode`."""
    if not is_intact(content):
        return None
    try:
        parquet = pq.read_metadata(pa.BufferReader(content))
        fields = json.loads(parquet.metadata[METADATA_KEY.encode()])
        batch, run = tuple(map(str, fields["batch"])), str(fields.get("run", ""))
        metadata = CellMetadata(str(fields["cell"]), str(fields["image"]), batch, run)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    return metadata if parquet.schema.to_arrow_schema().equals(SCHEMA) else None


def is_intact(content: bytes) -> bool:
    """Return whether the checksum of a file matches. The content is not parsed."""
    start = content.rfind(_CHECKSUM_PREFIX) + len(_CHECKSUM_PREFIX)
    if start < len(_CHECKSUM_PREFIX):
        return False
    return with_checksum(content[:start] + _CHECKSUM_BLANK + content[start + _CHECKSUM_DIGITS :]) == content


def checksum(content: bytes) -> str:
    """Return the checksum of a file: 128 bits of BLAKE2b as 32 hexadecimal digits.

    >>> checksum(b"")
    'cae66941d9efbd404e4d88758ea67670'
    """
    return hashlib.blake2b(content, digest_size=_CHECKSUM_DIGITS // 2).hexdigest()


def with_checksum(content: bytes) -> bytes:
    """Insert the checksum of a file that has zeros in its place, as in the header of a tar file."""
    start = content.rfind(_CHECKSUM_PREFIX + _CHECKSUM_BLANK) + len(_CHECKSUM_PREFIX)
    return content[:start] + checksum(content).encode() + content[start + _CHECKSUM_DIGITS :]
