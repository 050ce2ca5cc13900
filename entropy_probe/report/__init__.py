"""Figures, tables, the HTML report and the notebook view."""

from entropy_probe.report.compare import RunComparison, compare
from entropy_probe.report.explorer import explore
from entropy_probe.report.maps import EntropyMap, entropy_maps
from entropy_probe.report.report import Report, report

__all__ = ["EntropyMap", "Report", "RunComparison", "compare", "entropy_maps", "explore", "report"]
