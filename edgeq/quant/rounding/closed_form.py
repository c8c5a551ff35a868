"""Rounders that need no training: nearest, GPTQ, and GPTQ refined by coordinate descent."""

from __future__ import annotations

import torch

from edgeq.quant.rounding.grid import WeightGrid
from edgeq.quant.rounding.problem import Effort, LayerProblem, Rounded
from edgeq.quant.rounding.refine import refine
from edgeq.quant.rounding.second_order import gptq as gptq_codes

_MOVES = 200
_DAMPING = 0.01


def nearest(problem: LayerProblem, effort: Effort | None = None) -> Rounded:
    """Each weight to the nearest code; data, if any, only matches the bias.

    Args:
        problem: The layer.
        effort: Unused.
    """
    del effort
    return problem.answer(WeightGrid.of(problem.qparams, problem.goal).codes(problem.goal))


def gptq(problem: LayerProblem, effort: Effort | None = None) -> Rounded:
    """`edgeq.quant.rounding.second_order.gptq` on all rows.

    Args:
        problem: The layer.
        effort: Unused.
    """
    del effort
    codes = gptq_codes(problem.goal, problem.qparams, problem.moments, centred=problem.adjust_bias)
    return problem.answer(codes)


@torch.no_grad()
def coordinate(problem: LayerProblem, effort: Effort | None = None) -> Rounded:
    """GPTQ, then up to 200 single moves of every row that each lower the damped quadratic error.

    GPTQ never comes back to a code; ERQ's refinement does, and costs little on top. Both are fitted to the training
    rows; on the held-out rows the refined codes have to win, else the answer is plain GPTQ on all rows.

    Args:
        problem: The layer.
        effort: Number of moves of a row.
    """
    moves = _MOVES if effort is None or effort.iterations is None else effort.iterations
    start = gptq(problem)
    train, total = problem.moments.train, problem.moments.total
    grid = WeightGrid.of(problem.qparams, problem.goal)

    def refined(codes: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        damped = covariance.clone()
        damped.diagonal().add_(_DAMPING * damped.diagonal().mean())
        return refine(codes, problem.goal, grid, damped, moves)

    centred = problem.adjust_bias
    if problem.moments.holdout.mass > 0:
        trial = gptq_codes(problem.goal, problem.qparams, train, centred=centred)
        better = problem.error(grid.reals(refined(trial, train.covariance(centred=centred))))
        if better >= problem.error(grid.reals(trial)):
            return problem.answer(start.codes, note="no moves: they were worse on the held-out rows")
    codes = refined(start.codes, total.covariance(centred=centred))
    return problem.answer(codes, note=f"{int((codes != start.codes).sum())} codes moved")
