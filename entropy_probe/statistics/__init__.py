"""Statistics of attention rows: pure functions of the tensors that `scaled_dot_product_attention` takes."""

from entropy_probe.statistics.dense import dense
from entropy_probe.statistics.flash import curve, flash
from entropy_probe.statistics.parts import PartMeans, parts
from entropy_probe.statistics.rows import RowMeans, RowStatistics, standard_error, stratified_rows

__all__ = [
    "PartMeans",
    "RowMeans",
    "RowStatistics",
    "curve",
    "dense",
    "flash",
    "parts",
    "standard_error",
    "stratified_rows",
]
