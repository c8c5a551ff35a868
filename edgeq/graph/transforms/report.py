"""What a transform reports: the places that it changed, and those that it left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

Site = TypeVar("Site")

Batches = Callable[[], Iterable[tuple[Tensor, ...]]]


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


@dataclass(frozen=True)
class Applied:
    """What one transform did to a graph.

    Args:
        name: The transform.
        sites: How many places it changed.
        skipped: What it left alone, and why.
        detail: How, where there was a choice; for people.
    """

    name: str
    sites: int
    skipped: tuple[Skipped, ...]
    detail: str = ""

    def __str__(self) -> str:
        how = f" ({self.detail})" if self.detail else ""
        left = "".join(f"; left alone: {s.name}, {s.reason}" for s in self.skipped)
        return f"{self.name}: {self.sites} places{how}{left}"
