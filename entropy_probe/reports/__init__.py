"""Report results as HTML pages and in notebooks: one run, several runs side by side, and an explorer."""

from entropy_probe.extras import name_missing_extra

with name_missing_extra():
    from entropy_probe.reports.comparison import RunComparison, compare
    from entropy_probe.reports.explorer import explore
    from entropy_probe.reports.run_report import Report, report

__all__ = ["Report", "RunComparison", "compare", "explore", "report"]
