"""Moving single codes by one step while that lowers a quadratic error."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeq.quant.rounding.grid import WeightGrid


@torch.no_grad()
def refine(codes: Tensor, target: Tensor, grid: WeightGrid, hessian: Tensor, steps: int) -> Tensor:
    """Greedy coordinate descent on `tr(D H D^T)`, `D = real(codes) - target`, every row for itself.

    In each step a row moves the one code whose move by one saves most, if any does; no step increases the error. This
    is the rounding refinement of ERQ (Zhong et al. 2024, arXiv 2407.06794) with two deviations: the
    exact saving `2 a g + a^2 H_ii` chooses the code, in place of the largest gradient, and a code may leave the two
    neighbours of its target.

    Args:
        codes: Codes to start from, `(O, I)`.
        target: What they stand for, `(O, I)`.
        grid: Their grid.
        hessian: Symmetric, `(I, I)`, float64.
        steps: Most moves of a row.

    Returns:
        Codes, float32 `(O, I)`.
    """
    codes = codes.to(torch.float32).clone()
    scale = grid.scale.to(torch.float64)
    gradient = ((grid.reals(codes).to(torch.float64) - target.to(torch.float64)) @ hessian).contiguous()
    curvature = scale.square() * hessian.diagonal()
    rows = torch.arange(codes.shape[0])
    for _ in range(steps):
        if rows.numel() == 0:
            break
        part, g = codes[rows], gradient[rows]
        move = -torch.sign(g)
        moved = part + move
        allowed = (moved >= grid.qmin) & (moved <= grid.qmax) & (move != 0)
        saving = torch.where(allowed, curvature[rows] - 2 * g.abs() * scale[rows], torch.inf)
        least, column = saving.min(dim=1)
        # Savings below rounding noise would only go in circles.
        better = least < -1e-12 * (curvature[rows].gather(1, column[:, None])[:, 0] + 1e-300)
        rows, column = rows[better], column[better]
        step = move[better].gather(1, column[:, None])[:, 0]
        codes[rows, column] += step.to(torch.float32)
        gradient[rows] += (step * scale[rows, column])[:, None] * hessian[column]
    return codes
