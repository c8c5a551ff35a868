"""Bounds of a tensor that a transform knows beforehand, noted on its node: the grid covers them without calibration."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

from edgeq.errors import InternalError

KEY = "bounds"


class Bounds(NamedTuple):
    """Ends of a grid and who set them."""

    low: float
    high: float
    origin: str


def set_bounds(node: fx.Node, low: float, high: float, origin: str) -> None:
    """Note that the grid of `node` shall cover `low` to `high`; values beyond saturate.

    Args:
        node: The tensor.
        low: Lower end, at most 0.
        high: Upper end, at least 0.
        origin: Who says so, for the plan.

    Raises:
        InternalError: The bounds are empty, or leave out 0.
    """
    if not (low <= 0 <= high and low < high):
        raise InternalError(f"impossible bounds {low} to {high} of {node.name}", code="EQ-Z300", place=node.name)
    node.meta[KEY] = Bounds(low, high, origin)


def bounds_of(node: fx.Node) -> Bounds | None:
    """The bounds noted on `node`."""
    bounds = node.meta.get(KEY)
    return bounds if isinstance(bounds, Bounds) else None
