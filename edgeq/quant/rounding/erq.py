"""ERQ: ridge regression against the error of the inputs, then rounding by halves with refinement and correction.

Zhong et al. 2024, "ERQ: Error Reduction for Post-Training Quantization of Vision Transformers" (arXiv 2407.06794).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeq.quant.rounding.grid import WeightGrid
from edgeq.quant.rounding.problem import Effort, LayerProblem, Rounded
from edgeq.quant.rounding.refine import refine
from edgeq.quant.rounding.second_order import damped_cholesky

_FLIPS = 100
_DAMPING = 0.01


def erq(problem: LayerProblem, effort: Effort | None = None) -> Rounded:
    """Ridge regression against the input error (Aqer), then rounding by halves (Wqer).

    Aqer is `retarget`: it predicts the same output by the same regression, but on centred moments, and the strength
    comes from held-out rows instead of a constant (1e3 to 2e3 on a Gram matrix of sums), which over-fits small
    calibration sets. It is left out when the problem brings a target.

    Args:
        problem: The layer.
        effort: Unused.
    """
    del effort
    note = "target given"
    if problem.target is None:
        problem, found = problem.retargeted()
        note = found.note
    covariance = problem.moments.total.covariance(centred=problem.adjust_bias)
    codes = round_by_halves(problem.goal, WeightGrid.of(problem.qparams, problem.goal), covariance)
    return problem.answer(codes, note=note)


@torch.no_grad()
def round_by_halves(target: Tensor, grid: WeightGrid, covariance: Tensor) -> Tensor:
    """Round half of the inputs left, refine, correct the other half, until none is left (Wqer).

    Deviations, for numerical soundness: factors are Cholesky factors with damping relative to the mean variance; and
    a half is refined under the error that remains after the best correction of the other half (the Schur complement
    of the covariance), which the correction that follows then attains.

    Args:
        target: Weight to round, `(O, I)`.
        grid: Its grid.
        covariance: Of the inputs, float64 `(I, I)`.

    Returns:
        Codes, float32 `(O, I)`.
    """
    rest, codes = target.to(torch.float64).clone(), grid.codes(target)
    start, width = 0, target.shape[1]
    while start < width:
        stop = start + (width - start + 1) // 2
        half, later = slice(start, stop), slice(stop, width)
        part = WeightGrid(grid.scale[:, half], grid.zero[:, half], grid.qmin, grid.qmax)
        hessian, shared = covariance[half, half], covariance[half, later]
        factor = damped_cholesky(covariance[later, later], _DAMPING) if stop < width else None
        if factor is not None:
            hessian = hessian - shared @ torch.cholesky_solve(shared.T, factor)
        wanted = rest[:, half]
        codes[:, half] = refine(part.codes(wanted), wanted, part, hessian, _FLIPS)
        if factor is not None:
            error = part.reals(codes[:, half]).to(torch.float64) - wanted
            rest[:, later] -= torch.cholesky_solve((error @ shared).T, factor).T
        start = stop
    return codes
