"""Statistics of attention rows: pure functions of the tensors that `scaled_dot_product_attention` takes."""

from entropy_probe.statistics.dense import dense
from entropy_probe.statistics.flash import flash
from entropy_probe.statistics.rows import RowStatistics, mean_over_rows, std_over_rows, stratified_rows

__all__ = ["RowStatistics", "dense", "flash", "mean_over_rows", "std_over_rows", "stratified_rows"]
