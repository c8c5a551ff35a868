"""One HTML page about a bundle: what it is, what it keeps of the float model, what was not measured."""

from edgeq.report.page import open_validation, write_report

__all__ = ["open_validation", "write_report"]
