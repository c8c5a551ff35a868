"""HTML pages: about a bundle, what it is, keeps of the float model, and what was not measured; and about a search."""

from edgeq.report.front import search_page
from edgeq.report.page import open_validation, write_report

__all__ = ["open_validation", "search_page", "write_report"]
