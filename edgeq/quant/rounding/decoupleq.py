"""decoupleQ: codes and grid in turn, each the best for the other.

Guo et al. 2024, "decoupleQ: Towards 2-bit Post-Training Uniform Quantization via decoupling Parameters into Integer and
Floating Points" (arXiv 2404.12759).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeq.errors import UsageError
from edgeq.quant.rounding.grid import WeightGrid
from edgeq.quant.rounding.problem import Effort, LayerProblem, Rounded
from edgeq.quant.rounding.refine import refine
from edgeq.quant.rounding.second_order import gptq as gptq_codes
from edgeq.spec import PerChannel, PerTensor, QParams

_ROUNDS = 4
_MOVES = 100
_DAMPING = 0.01
_TRAVEL = 4.0  # in each round a scale stays within this factor of the one before
_ROWS_AT_ONCE = 128


@torch.no_grad()
def decoupleq(problem: LayerProblem, effort: Effort | None = None) -> Rounded:
    """Minimise `tr(D H D^T)` over codes and over scales and zero points in turn; moves the grid.

    Codes come from GPTQ and from coordinate descent on the codes before, row by row whichever is better, in place of
    projected Adam with sequential rounding; scales and zero points come from least squares, kept for a row only if
    they lower its error. Deviation: zero points stay integers, as every integer kernel needs, and a symmetric grid
    stays symmetric. Nearest rounding and every round are judged on the held-out rows.

    Args:
        problem: The layer.
        effort: `iterations` is the number of rounds, 4 by default.

    Raises:
        UsageError: The grid has a scale for each input.
    """
    effort = effort or Effort()
    granularity = problem.qparams.spec.granularity
    if isinstance(granularity, PerChannel) and granularity.axis % 2 == 1:
        raise UsageError(
            "decoupleQ moves scales of rows or groups, not of input channels",
            code="EQ-U224",
            hint="use PerChannel(0), PerGroup or another rounder",
        )
    goal, qparams = problem.goal.to(torch.float64), problem.qparams
    grid = WeightGrid.of(qparams, goal)
    codes = grid.codes(goal)
    best, least, note = problem.answer(codes), problem.error(grid.reals(codes)), "nearest"
    train = problem.moments.train
    hessian = train.covariance(centred=problem.adjust_bias)
    if not bool((hessian.diagonal() > 0).any()):
        return problem.answer(codes, note="nearest: no data")
    hessian.diagonal().add_(_DAMPING * hessian.diagonal().mean())
    for turn, _ in enumerate(effort.steps(_ROUNDS), 1):
        proposal = gptq_codes(goal, qparams, train, centred=problem.adjust_bias).to(torch.float32)
        grid = WeightGrid.of(qparams, goal)
        options = [refine(c, goal, grid, hessian, _MOVES) for c in (codes, proposal)]
        worse = _row_errors(grid.reals(options[1]), goal, hessian) >= _row_errors(grid.reals(options[0]), goal, hessian)
        codes = torch.where(worse[:, None], options[0], options[1])
        qparams = fit_grid(codes, goal, qparams, hessian)
        found = problem.answer(codes, qparams)
        error = problem.error(found.weight)
        if error < least:
            best, least, note = found, error, f"round {turn}"
    return replace(best, note=note)


def fit_grid(codes: Tensor, goal: Tensor, qparams: QParams, hessian: Tensor) -> QParams:
    """The grid on which fixed codes stand best for `goal`; never worse than `qparams`, row by row.

    Args:
        codes: `(O, I)`.
        goal: Float64 `(O, I)`.
        qparams: The grid now: one scale for the tensor, for each row or for each group.
        hessian: Float64 `(I, I)`.
    """
    state = _State.of(codes.to(torch.float64), goal, qparams)
    start = state.scale.clone()
    if not qparams.spec.symmetric:
        ones = torch.ones_like(state.codes)
        scale, offset = _solve(state, torch.stack([state.codes, ones], 1), hessian, shift=True).unbind(1)
        usable = _usable(scale, start)
        zero = torch.where(usable, torch.round(-offset / torch.where(usable, scale, 1.0)), state.zero)
        zero = zero.clamp(qparams.spec.qmin, qparams.spec.qmax)
        moved = replace(state, zero=zero)
        state = _better(state, moved.with_scale(_solve_scale(moved, hessian), start), hessian)
    state = _better(state, state.with_scale(_solve_scale(state, hessian), start), hessian)
    shape = qparams.scale.shape
    if isinstance(qparams.spec.granularity, PerTensor) or qparams.scale.ndim == 0:
        scale, zero = state.scale[0, 0], state.zero[0, 0]
    else:
        scale, zero = state.scale.reshape(shape), state.zero.reshape(shape)
    return replace(qparams, scale=scale.float().numpy(), zero_point=zero.to(torch.int32).numpy())


@dataclass(frozen=True, eq=False)
class _State:
    """Codes `(O, G, g)`, goal `(O, I)` and grid `(O, G)`, all float64; `pooled` when all rows share one scale."""

    codes: Tensor
    goal: Tensor
    scale: Tensor
    zero: Tensor
    pooled: bool

    @classmethod
    def of(cls, codes: Tensor, goal: Tensor, qparams: QParams) -> _State:
        scale, zero = (torch.from_numpy(v).to(torch.float64) for v in (qparams.scale, qparams.zero_point))
        rows, width = codes.shape
        if scale.ndim == 0:
            scale, zero = scale.expand(rows, 1), zero.expand(rows, 1)
        scale, zero = scale.reshape(rows, -1), zero.reshape(rows, -1)
        groups = scale.shape[1]
        return cls(codes.reshape(rows, groups, width // groups), goal, scale, zero, qparams.scale.ndim == 0)

    def reals(self) -> Tensor:
        return ((self.codes - self.zero[..., None]) * self.scale[..., None]).reshape(self.goal.shape)

    def with_scale(self, scale: Tensor, start: Tensor) -> _State:
        """These scales where they are sane, in float32 precision as they will be stored."""
        return replace(self, scale=torch.where(_usable(scale, start), scale, self.scale).float().double())


def _usable(scale: Tensor, start: Tensor) -> Tensor:
    return torch.isfinite(scale) & (scale > start / _TRAVEL) & (scale < start * _TRAVEL)


def _better(old: _State, new: _State, hessian: Tensor) -> _State:
    """Row by row the state with the smaller error; for all rows at once when they share the scale."""
    errors = [_row_errors(s.reals(), s.goal, hessian) for s in (old, new)]
    if old.pooled:
        return new if float(errors[1].sum()) < float(errors[0].sum()) else old
    lower = (errors[1] < errors[0])[:, None]
    return replace(old, scale=torch.where(lower, new.scale, old.scale), zero=torch.where(lower, new.zero, old.zero))


def _row_errors(reals: Tensor, goal: Tensor, hessian: Tensor) -> Tensor:
    """`d H d^T` of each row, float64 `(O,)`."""
    error = reals.to(torch.float64) - goal.to(torch.float64)
    return (error @ hessian * error).sum(1)


def _solve_scale(state: _State, hessian: Tensor) -> Tensor:
    """Best scales `(O, G)` for fixed codes and zero points."""
    basis = (state.codes - state.zero[..., None])[:, None]
    return _solve(state, basis, hessian, shift=False)[:, 0]


def _solve(state: _State, basis: Tensor, hessian: Tensor, *, shift: bool) -> Tensor:
    """Least squares `min (goal - sum_mk x_mk basis_mk) H (...)^T` of each row, or of all rows together.

    Args:
        state: Grid to start from, so that directions without data stay as they are.
        basis: `(O, M, G, g)`: M patterns for every group.
        hessian: `(I, I)`.
        shift: The second pattern is an offset, `-zero * scale`.

    Returns:
        `(O, M, G)`.
    """
    rows, patterns, groups, _ = basis.shape
    start = torch.stack([state.scale, -state.zero * state.scale], 1) if shift else state.scale[:, None]
    residue = (state.goal - state.reals()) @ hessian
    normal, wanted = [], []
    for first in range(0, rows, _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        piece = basis[part]
        count = piece.shape[0]
        # a pattern is 0 outside of its group: only the group's rows of H meet it
        reach = torch.einsum("omgi,gij->omgj", piece, hessian.reshape(groups, -1, hessian.shape[0]))
        reach = reach.reshape(count, patterns * groups, groups, -1)
        size = patterns * groups
        normal.append(torch.einsum("okgi,omgi->okmg", reach, piece).reshape(count, size, size))
        wanted.append((piece * residue[part].reshape(count, 1, groups, -1)).sum(-1).reshape(count, size))
    matrix, vector = torch.cat(normal), torch.cat(wanted)
    if state.pooled:
        matrix, vector = matrix.sum(0, keepdim=True), vector.sum(0, keepdim=True)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    floor = torch.where(diagonal > 0, 1e-9 * diagonal, 1.0)
    step: Tensor = torch.linalg.solve(matrix + torch.diag_embed(floor), vector)
    return start + step.reshape(-1, patterns, groups)
