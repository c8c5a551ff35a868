"""What a transform reports: the places that it changed, and those that it left alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Site = TypeVar("Site")


@dataclass(frozen=True)
class Skipped:
    """A place that a transform left as it was.

    Args:
        name: Node.
        reason: Why, for people.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Report(Generic[Site]):
    """What a transform did.

    Args:
        sites: What it changed, in execution order.
        skipped: What it left as it was.
    """

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
