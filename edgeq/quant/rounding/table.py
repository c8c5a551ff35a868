"""The rounders by name: one problem in, one answer out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgeq.errors import unknown_name
from edgeq.quant.rounding.closed_form import coordinate, gptq, nearest
from edgeq.quant.rounding.decoupleq import decoupleq
from edgeq.quant.rounding.erq import erq
from edgeq.quant.rounding.learned import adaround, flexround, signround
from edgeq.quant.rounding.problem import Effort, LayerProblem, Rounded


class RoundFunction(Protocol):
    """`(problem, effort) -> Rounded`."""

    def __call__(self, problem: LayerProblem, effort: Effort | None = None, /) -> Rounded:
        """Round the layer."""
        ...


@dataclass(frozen=True)
class Rounder:
    """A way to choose the codes of one layer's weight.

    Args:
        summary: What it does, for tables.
        needs_data: Without moments it is no better than nearest.
        moves_grid: It answers with a grid of its own.
        round: The function.
    """

    summary: str
    needs_data: bool
    moves_grid: bool
    round: RoundFunction


ROUNDERS: Mapping[str, Rounder] = {
    "nearest": Rounder("each weight to the nearest code", False, False, nearest),
    "gptq": Rounder("input by input, the rest makes good what rounding does wrong", True, False, gptq),
    "coordinate": Rounder("GPTQ, then single codes moved while the output improves", True, False, coordinate),
    "erq": Rounder("ridge regression, then halves of the inputs refined and corrected", True, False, erq),
    "adaround": Rounder("learns for each weight whether to round up or down", True, False, adaround),
    "flexround": Rounder("learns divisors of weights and the scales; codes may move far", True, True, flexround),
    "signround": Rounder("learns shifts and clips by the sign of the gradient", True, True, signround),
    "decoupleq": Rounder("best codes for the grid and best grid for the codes, in turn", True, True, decoupleq),
}
"""Rounders by name."""


def get_rounder(name: str) -> Rounder:
    """The rounder of that name.

    Raises:
        UsageError: There is none; the nearest name is in the hint.
    """
    if name not in ROUNDERS:
        raise unknown_name("rounding", name, ROUNDERS, code="EQ-U025", command="edgeq methods")
    return ROUNDERS[name]
