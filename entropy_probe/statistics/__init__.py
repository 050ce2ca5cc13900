"""Statistics of attention rows: pure functions of the tensors that `scaled_dot_product_attention` takes."""

from entropy_probe.statistics.dense import dense
from entropy_probe.statistics.flash import flash
from entropy_probe.statistics.rows import RowMeans, RowStatistics, stratified_rows

__all__ = ["RowMeans", "RowStatistics", "dense", "flash", "stratified_rows"]
