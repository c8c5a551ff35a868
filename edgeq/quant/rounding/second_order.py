"""Rounding and correction in closed form from second moments: GPTQ, least-squares targets, matched means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgeq.errors import DataError, UsageError
from edgeq.quant.rounding.grid import WeightGrid, require_matrix
from edgeq.quant.rounding.moments import LayerMoments, Moments, all_rows
from edgeq.spec import QParams

Order = Literal["descending", "natural"]

SHRINKS = (0.03, 0.3, 3.0)
"""Ridge strengths that `retarget` tries, in units of the mean variance of an input."""

_DAMPING_LIMIT = 1e4  # beyond it nothing of the data is left
_ROWS_PER_INPUT = 4  # fewer training rows over-fit a least-squares target


@torch.no_grad()
def gptq(
    weight: Tensor,
    qparams: QParams,
    moments: Moments | LayerMoments,
    damping: float = 0.01,
    order: Order = "descending",
    block: int = 128,
    *,
    centred: bool = True,
) -> Tensor:
    """Round input by input; what each rounding does wrong, the inputs not yet rounded make good.

    Frantar et al. 2022, "GPTQ" (arXiv 2210.17323), algorithm 1. Minimises `E ||(W - W') xq||^2` greedily on the given
    grid. Deviations: the covariance is centred (the bias is meant to be matched by `mean_bias`); its factor comes
    from one Cholesky of the reversed matrix instead of an explicit inverse; damping is raised until the factor
    exists; an input that never varied is rounded to nearest rather than set to 0, since it may vary on the device.

    Args:
        weight: `(O, I)`.
        qparams: Grid of that matrix; it is not changed.
        moments: Inputs of the layer; without rows the result is the nearest codes.
        damping: Added to the diagonal, in units of its mean.
        order: `descending` rounds the inputs of largest variance first, `natural` from left to right.
        block: Columns corrected at once; changes speed only.
        centred: False for a layer whose bias cannot change.

    Returns:
        Codes, int32 `(O, I)`.

    Raises:
        UsageError: Shapes do not fit, or an option is out of range.
        ModelError: The weight holds NaN or infinity.
        DataError: The moments hold NaN or infinity.
    """
    if not damping > 0 or block < 1 or order not in ("descending", "natural"):
        raise UsageError(f"impossible GPTQ options: {damping=}, {order=}, {block=}", code="EQ-U223")
    require_matrix(weight)
    grid = WeightGrid.of(qparams, weight)
    covariance = _covariance(weight, all_rows(moments), centred=centred)
    diagonal = covariance.diagonal()
    if not bool((diagonal > 0).any()):
        return grid.codes(weight).to(torch.int32)
    natural = torch.arange(weight.shape[1])
    # Stable, so that equal variances leave one answer.
    permutation = torch.sort(diagonal, descending=True, stable=True).indices if order == "descending" else natural
    factor = inverse_factor(covariance[permutation][:, permutation], damping)
    if factor is None:
        return grid.codes(weight).to(torch.int32)
    columns = WeightGrid(
        grid.scale.T[permutation].contiguous(), grid.zero.T[permutation].contiguous(), grid.qmin, grid.qmax
    )
    rounded = _round_columns(weight.to(torch.float64).T[permutation].contiguous(), columns, factor, block)
    codes = torch.empty_like(rounded)
    codes[permutation] = rounded
    return codes.T.to(torch.int32).contiguous()


def inverse_factor(covariance: Tensor, damping: float) -> Tensor | None:
    """Upper triangular `U` with `U^T U = (covariance + damping * mean diagonal * I)^-1`, float64 `(I, I)`.

    With `J` the reversal of the order, `J H J = L L^T` gives `H^-1 = U^T U` for `U = J L^-1 J`: no explicit inverse.
    Inputs without variance get the mean variance, so that they stay out of the way. The damping is raised tenfold
    until the factor exists; None when it never does.
    """
    factor = damped_cholesky(covariance.flip(0, 1), damping)
    if factor is None:
        return None
    identity = torch.eye(factor.shape[0], dtype=factor.dtype)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.flip(0, 1)


def damped_cholesky(covariance: Tensor, damping: float) -> Tensor | None:
    """Lower Cholesky factor of `covariance + damping * mean diagonal * I`; tenfold damping until it exists, or None."""
    diagonal = covariance.diagonal().clamp(min=0)
    alive = diagonal > 0
    if not bool(alive.any()):
        return None
    unit = float(diagonal[alive].mean())
    while damping <= _DAMPING_LIMIT:
        damped = covariance.clone()
        damped.diagonal().add_(damping * unit).add_(unit * ~alive)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0 and bool(torch.isfinite(factor).all()):
            result: Tensor = factor
            return result
        damping *= 10
    return None


@dataclass(frozen=True, eq=False)
class Retargeted:
    """What `retarget` found.

    Args:
        weight: The target for the rounder, float64 `(O, I)`.
        shrink: Ridge strength that won; 0 when the weight was left as it was.
        gain: Mean squared output error saved on the held-out rows, summed over outputs; on the training rows when
            none are held out.
        note: The choice in words.
    """

    weight: Tensor
    shrink: float
    gain: float
    note: str


@torch.no_grad()
def retarget(
    weight: Tensor,
    moments: LayerMoments,
    shrink: Sequence[float] = SHRINKS,
    *,
    centred: bool = True,
) -> Retargeted:
    """The weight that best reproduces the float output from quantized inputs, as target for any rounder.

    `W' = W + W C(d, xq) (C(xq, xq) + shrink * mean variance * I)^-1` with the drift `d = x - xq`, the ridge solution of
    `min E ||W x - W' xq||^2` about the means. Since `E ||W x - Q xq||^2 = const + E ||(W' - Q) xq||^2` at the
    unshrunk solution, rounding `W'` with GPTQ on `xq` solves the asymmetric problem that Li et al. 2025, "GPTAQ",
    treat inside the recursion; the correction alone is that of QuartDepth's activation compensation.

    The strength is the one of `shrink`, or no step at all, with the least error on the held-out rows; the winner is
    then fitted again to all rows. Without held-out rows the strongest one is used if there are at least 4 rows for
    each input, else none.

    What falls is the error of this layer's output over all rows together. The network's output may hang on few of
    them, such as a class token, which need not gain: the mean over networks gains, a single small one may not. To ask
    that the rounded target beats the rounded weight on the held-out rows is no guard, since it does in nearly every
    layer; only the network's output can tell.

    Args:
        weight: `(O, I)`, the float weight.
        moments: Quantized and float inputs; without drift the result is the weight itself.
        shrink: Positive strengths to try.
        centred: False for a layer whose bias cannot change.

    Raises:
        UsageError: Shapes do not fit, or a strength is not positive.
        ModelError: The weight holds NaN or infinity.
        DataError: The moments hold NaN or infinity.
    """
    if not shrink or not all(0 < s < float("inf") for s in shrink):
        raise UsageError(f"shrink strengths must be positive, not {tuple(shrink)}", code="EQ-U223")
    w = weight.to(torch.float64)
    _covariance(weight, moments.total, centred=centred)
    if not bool(moments.total.drift.any()):
        return Retargeted(w.clone(), 0.0, 0.0, "no drift: the float weight is the target")
    if moments.holdout.mass <= 0:
        if moments.train.rows < _ROWS_PER_INPUT * moments.width:
            return Retargeted(w.clone(), 0.0, 0.0, "no step: too few rows and none held out")
        step = ridge_step(w, moments.train, max(shrink), centred=centred)
        gain = -_step_error(w, step, moments.train, centred=centred)
        return Retargeted(w + step, max(shrink), gain, f"shrink {max(shrink):g}, no rows held out")
    best, least = 0.0, 0.0
    for strength in shrink:
        step = ridge_step(w, moments.train, strength, centred=centred)
        error = _step_error(w, step, moments.holdout, centred=centred)
        if error < least:
            best, least = strength, error
    if best == 0:
        return Retargeted(w.clone(), 0.0, 0.0, "no step: every strength was worse on the held-out rows")
    step = ridge_step(w, moments.total, best, centred=centred)
    return Retargeted(w + step, best, -least, f"shrink {best:g} of {', '.join(f'{s:g}' for s in shrink)}")


@torch.no_grad()
def ridge_step(weight: Tensor, moments: Moments, shrink: float, *, centred: bool = True) -> Tensor:
    """`dW = W C(d, xq) (C(xq, xq) + shrink * mean variance * I)^-1`, float64 `(O, I)`; 0 where nothing varies.

    Never increases `E ||W x - (W + dW) xq||^2` over the rows of `moments`, whatever the strength.
    """
    factor = damped_cholesky(moments.covariance(centred=centred), shrink)
    if factor is None:
        return torch.zeros_like(weight, dtype=torch.float64)
    wanted = moments.drift_covariance(centred=centred) @ weight.to(torch.float64).T
    return torch.cholesky_solve(wanted, factor).T


@torch.no_grad()
def excess_error(weight: Tensor, quantized: Tensor, moments: Moments | LayerMoments, *, centred: bool = True) -> float:
    """`E ||W x - W' xq||^2 - E ||W (x - xq)||^2`, summed over outputs: what the choice of `W'` adds to the error.

    The term left out does not depend on `W'`, so that two quantized weights compare by their excess; it is negative
    when `W'` makes good some of the drift. Without drift this is the whole error.

    Args:
        weight: Float weight `(O, I)`.
        quantized: Values of the rounded weight `(O, I)`.
        moments: The inputs.
        centred: Assume that the bias is matched to the means.

    Raises:
        UsageError: Shapes do not fit.
        ModelError: A weight holds NaN or infinity.
    """
    rows, w = all_rows(moments), weight.to(torch.float64)
    _require_pair(weight, quantized, rows)
    return _step_error(w, quantized.to(torch.float64) - w, rows, centred=centred)


@torch.no_grad()
def mean_bias(weight: Tensor, quantized: Tensor, moments: Moments | LayerMoments, bias: Tensor | None = None) -> Tensor:
    """The bias with which the quantized layer has the float layer's mean output: `b + W mean(x) - W' mean(xq)`.

    Exact on the calibration rows (Nagel et al. 2019, arXiv 1906.04721, section 4.2, estimate it from batch norm).

    Args:
        weight: Float weight `(O, I)`, before any retargeting.
        quantized: Values (not codes) of the rounded weight `(O, I)`.
        moments: The inputs; without rows the bias stays.
        bias: Float bias `(O,)`; 0 when None.

    Returns:
        Float64 `(O,)`.

    Raises:
        UsageError: Shapes do not fit.
        ModelError: A weight holds NaN or infinity.
    """
    rows = all_rows(moments)
    start = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.to(torch.float64)
    _require_pair(weight, quantized, rows, start)
    return start + weight.to(torch.float64) @ rows.mean_x - quantized.to(torch.float64) @ rows.mean_q


def _step_error(weight: Tensor, step: Tensor, moments: Moments, *, centred: bool) -> float:
    """`E ||W d - S xq||^2 - E ||W d||^2` for `W' = W + S`, from `tr(S C S^T) - 2 tr(S C(xq, d) W^T)`."""
    own = (step @ moments.covariance(centred=centred) * step).sum()
    shared = (step @ moments.drift_covariance(centred=centred) * weight).sum()
    return float(own - 2 * shared)


def _require_pair(weight: Tensor, quantized: Tensor, moments: Moments, bias: Tensor | None = None) -> None:
    """Raise unless a float weight, its rounded values, its bias and the moments of its inputs fit each other."""
    require_matrix(weight)
    require_matrix(quantized)
    shapes = [tuple(t.shape) for t in (weight, quantized, *(() if bias is None else (bias,)))]
    fits = weight.shape == quantized.shape and weight.shape[1] == moments.width
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        raise UsageError(
            f"weights and bias of shapes {shapes} and {moments.width} inputs do not fit",
            code="EQ-U222",
            hint="give the values, not the codes, of the same layer",
        )


def _covariance(weight: Tensor, moments: Moments, *, centred: bool) -> Tensor:
    """Checked covariance of a layer's inputs."""
    require_matrix(weight)
    if weight.shape[1] != moments.width:
        raise UsageError(
            f"moments of {moments.width} inputs for a weight of shape {tuple(weight.shape)}",
            code="EQ-U222",
            hint="flatten a convolution to (outputs, inputs * kh * kw)",
        )
    covariance = moments.covariance(centred=centred)
    if not bool(torch.isfinite(covariance).all()) or not bool(torch.isfinite(moments.drift).all()):
        raise DataError(
            "the moments of a layer's inputs overflowed",
            code="EQ-D220",
            hint="look for huge activations in the calibration data",
        )
    return covariance


def _round_columns(columns: Tensor, grid: WeightGrid, factor: Tensor, block: int) -> Tensor:
    """Algorithm 1 of GPTQ on the transposed weight `(I, O)`, which it overwrites; float32 codes `(I, O)`."""
    codes = torch.empty(columns.shape, dtype=torch.float32)
    inverse = 1.0 / grid.scale
    for start in range(0, columns.shape[0], block):
        stop = min(start + block, columns.shape[0])
        part, local = columns[start:stop], factor[start:stop, start:stop]
        errors = torch.empty_like(part)
        for j in range(stop - start):
            at = start + j
            code = torch.round(part[j].to(torch.float32) * inverse[at]).add_(grid.zero[at]).clamp_(grid.qmin, grid.qmax)
            codes[at] = code
            real = (code - grid.zero[at]) * grid.scale[at]
            errors[j] = (part[j] - real) / local[j, j]
            part[j + 1 :].addr_(local[j, j + 1 :], errors[j], alpha=-1)
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return codes
