"""Convert run directories of entropy-probe 0.1.0 (format 3) to format 4.

Format 4 renames the column `multiplier` and the manifest field `multipliers` to `scale_factor` and `scale_factors`, and
the key `picture` in the metadata of a cell to `image`. All values stay the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from entropy_probe.runs import cells
from entropy_probe.runs.files import replace_file

OLD_FORMAT = 3
_OLD_KEY = b'"picture": "'


def upgrade_manifest(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a manifest of format 3 converted to format 4.

    >>> upgrade_manifest({"multipliers": [2.0], "format": 3})
    {'scale_factors': [2.0], 'format': 4}
    """
    renamed = {"scale_factors" if name == "multipliers" else name: value for name, value in fields.items()}
    return {**renamed, "format": cells.FORMAT}


def upgrade_cell(content: bytes) -> bytes:
    """Return the file of a cell in format 4. A file of format 4, or a damaged file, is returned unchanged."""
    if _OLD_KEY not in content or not cells.is_intact(content):  # this check is fast; parsing every file would not be
        return content
    try:
        fields = json.loads(pq.read_metadata(pa.BufferReader(content)).metadata[cells.METADATA_KEY.encode()])
        metadata = cells.CellMetadata(str(fields["cell"]), str(fields["picture"]), tuple(map(str, fields["batch"])))
        frame = cells.decode(content).to_pandas().rename(columns={"multiplier": "scale_factor"})
        return cells.encode(frame, metadata)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return content


def upgrade_cells(folder: Path) -> None:
    """Rewrite the cells of format 3 in a folder. An interrupted call can be repeated.

    Raises:
        InputError: if a file cannot be written.
    """
    for path in folder.glob("*.parquet"):
        content = path.read_bytes()
        if (upgraded := upgrade_cell(content)) != content:
            replace_file(path, upgraded)
