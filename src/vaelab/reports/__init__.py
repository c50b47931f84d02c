"""Reports: one HTML page that shows finished runs, with their metrics, curves and pictures."""

from vaelab.reports.page import check, write

__all__ = ["check", "write"]
