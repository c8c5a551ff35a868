"""The front of a search as a page: placeholder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def page(result: Mapping[str, Any]) -> str:
    """A self-contained page."""
    return str(result["model"])
