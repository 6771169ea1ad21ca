"""The report of a comparison: one HTML page that needs nothing else, on a phone, in the dark and on paper."""

from mlc_yolo.report.page import write_report

__all__ = ["write_report"]
