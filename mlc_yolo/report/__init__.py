"""Pages: one HTML file each that needs nothing else, on a phone, in the dark and on paper."""

from mlc_yolo.report.diagnosis_page import write_diagnosis
from mlc_yolo.report.page import write_report

__all__ = ["write_diagnosis", "write_report"]
