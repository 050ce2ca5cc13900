"""Statistics of attention rows, computed from the arguments of `scaled_dot_product_attention`.

Read `dense` first: it is the definition. `flash` and `curve` return the same numbers in less time and memory.
"""

from entropy_probe.statistics.dense import dense
from entropy_probe.statistics.dispatch import curve, flash
from entropy_probe.statistics.parts import PartMeans, parts
from entropy_probe.statistics.rows import (
    RowMeans,
    RowStatistics,
    default_scale,
    standard_error,
    stratified_rows,
)

__all__ = [
    "PartMeans",
    "RowMeans",
    "RowStatistics",
    "curve",
    "default_scale",
    "dense",
    "flash",
    "parts",
    "standard_error",
    "stratified_rows",
]
