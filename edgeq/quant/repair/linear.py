"""Biases and scales of a quantized linear-like layer, refitted in closed form to the float layer's outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgeq.errors import UsageError
from edgeq.quant.rounding.grid import require_matrix
from edgeq.quant.rounding.moments import LayerMoments, Moments, fit_and_judge
from edgeq.quant.rounding.second_order import mean_bias
from edgeq.quant.uniform import dequantize
from edgeq.spec import PerChannel, PerGroup, QParams

_GAIN = 1e-9  # relative to the error before; less is rounding noise of the sums


@dataclass(frozen=True, eq=False)
class BiasRepair:
    """A bias and what it brought.

    Args:
        bias: Float64 `(O,)`; the one given when there was nothing to gain.
        before: Output error of the bias given, summed over outputs; see `output_errors`.
        after: Output error of `bias`.
    """

    bias: Tensor
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class ScaleRepair:
    """Rescaled grids and the bias that goes with them.

    Args:
        qparams: The grid; scales multiplied where that helps.
        bias: Float64 `(O,)`, matched to the new scales where that helps; the one given if `centred` is False.
        multiplier: Float64, `(O,)` or `()`; 1 where a scale was left alone.
        before: Output error of the grid given, summed over outputs; see `output_errors`.
        after: Output error of `qparams` and `bias`.
    """

    qparams: QParams
    bias: Tensor
    multiplier: Tensor
    before: float
    after: float


@torch.no_grad()
def output_errors(
    weight: Tensor,
    quantized: Tensor,
    moments: Moments,
    bias: Tensor | None = None,
    quantized_bias: Tensor | None = None,
) -> Tensor:
    """`E (W x + b - W' xq - b')^2` of each output, less the part of it that no `W'` and `b'` changes.

    The part left out is the variance that the drift `d = x - xq` of the inputs causes through the float weight; with
    it left out an error may be negative. Without drift this is the whole error.

    Args:
        weight: Float weight `(O, I)`.
        quantized: Values of the rounded weight `(O, I)`.
        moments: Float and quantized inputs of the layer.
        bias: Float bias `(O,)`; 0 when None.
        quantized_bias: Bias of the quantized layer `(O,)`; `bias` when None.

    Returns:
        Float64 `(O,)`.

    Raises:
        UsageError: The shapes do not fit.
        ModelError: A weight holds NaN or infinity.
    """
    matched = mean_bias(weight, quantized, moments, bias)
    w = weight.to(torch.float64)
    step = quantized.to(torch.float64) - w
    given = bias if quantized_bias is None else quantized_bias
    offset = matched if given is None else matched - given.to(torch.float64)
    own = (step @ moments.covariance() * step).sum(1)
    shared = (step @ moments.drift_covariance() * w).sum(1)
    result: Tensor = own - 2 * shared + offset.square()
    return result


@torch.no_grad()
def correct_bias(
    weight: Tensor, quantized: Tensor, moments: Moments | LayerMoments, bias: Tensor | None = None
) -> BiasRepair:
    """The bias that gives the quantized layer the float layer's mean output, where it lowers the output error.

    Nagel et al. 2019, "Data-Free Quantization" (arXiv 1906.04721), section 4.2, with means from data; the formula is
    `mean_bias`. Deviation: with held-out rows the means come from the training rows, and each output keeps its bias
    when the new one is no better on the held-out rows: a shift within the noise of the sample is not applied.

    Args:
        weight: Float weight `(O, I)`, before any retargeting.
        quantized: Values (not codes) of the rounded weight `(O, I)`.
        moments: Float and quantized inputs of the layer.
        bias: Float bias `(O,)`; 0 when None.

    Raises:
        UsageError: The shapes do not fit.
        ModelError: A weight holds NaN or infinity.
    """
    fit, judge = fit_and_judge(moments)
    old = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.to(torch.float64)
    chosen, before, after = _match(weight, quantized, fit, judge, old)
    return BiasRepair(chosen, float(before.sum()), float(after.sum()))


@torch.no_grad()
def tune_scales(
    weight: Tensor,
    codes: Tensor,
    qparams: QParams,
    moments: Moments | LayerMoments,
    bias: Tensor | None = None,
    *,
    centred: bool = True,
) -> ScaleRepair:
    """Multiply the scale of each output so that its values fit the float output best; codes stay as they are.

    Least squares in closed form: `m = cov(W' xq, W x) / var(W' xq)` for each output (for the whole tensor on a
    per-tensor grid), the half-step of decoupleQ's alternation (arXiv 2404.12759) that holds the integers. The bias
    follows as in `correct_bias`. An output whose error on the held-out rows does not fall further keeps its scale.

    Args:
        weight: Float weight `(O, I)`, before any retargeting.
        codes: Integer codes `(O, I)`.
        qparams: Their grid: per tensor, per output channel or per group.
        moments: Float and quantized inputs of the layer.
        bias: Float bias `(O,)`; 0 when None.
        centred: False for a layer whose bias cannot change.

    Raises:
        UsageError: The shapes do not fit, or the grid has one scale for each input.
        ModelError: The weight holds NaN or infinity.
    """
    require_matrix(weight)
    if isinstance(qparams.spec.granularity, PerChannel) and qparams.spec.granularity.axis % 2 and qparams.scale.ndim:
        raise UsageError(
            "scales of input channels cannot be tuned for outputs",
            code="EQ-U244",
            hint="use one scale per output channel",
        )
    fit, judge = fit_and_judge(moments)
    old = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.to(torch.float64)
    w, q = weight.to(torch.float64), dequantize(codes, qparams).to(torch.float64)
    chosen, before, matched = _match(w, q, fit, judge, old)
    if not centred:
        chosen, matched = old, before
    whole = qparams.scale.ndim == 0
    multiplier = _multiplier(w, q, fit, whole=whole, centred=centred)
    scaled = q * multiplier.reshape(-1, 1)
    shifted = mean_bias(w, scaled, fit, old) if centred else old
    errors = output_errors(w, scaled, judge, old, shifted)
    better = _better(matched.sum(), errors.sum()).expand(len(old)) if whole else _better(matched, errors)
    multiplier = torch.where(better[0] if whole else better, multiplier, 1.0)
    factors = multiplier.numpy()
    if isinstance(qparams.spec.granularity, PerGroup) and not whole:
        factors = factors[:, None]
    new = replace(qparams, scale=(qparams.scale * factors).astype(np.float32))
    after = torch.where(better, errors, matched)
    return ScaleRepair(new, torch.where(better, shifted, chosen), multiplier, float(before.sum()), float(after.sum()))


def _match(w: Tensor, q: Tensor, fit: Moments, judge: Moments, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bias matched where it helps, and the error of each output with the old and with that bias."""
    new = mean_bias(w, q, fit, old)
    before, after = output_errors(w, q, judge, old), output_errors(w, q, judge, old, new)
    better = _better(before, after)
    return torch.where(better, new, old), before, torch.where(better, after, before)


def _multiplier(w: Tensor, q: Tensor, moments: Moments, *, whole: bool, centred: bool) -> Tensor:
    """Least-squares factor of each output, or of all; 1 where nothing is known or a scale would not stay positive."""
    covariance = moments.covariance(centred=centred)
    own = (q @ covariance * q).sum(1)
    shared = (q @ (covariance + moments.drift_covariance(centred=centred)) * w).sum(1)
    if whole:
        own, shared = own.sum(), shared.sum()
    usable = (own > 0) & (shared > 0)
    return torch.where(usable, shared / torch.where(usable, own, 1.0), 1.0)


def _better(before: Tensor, after: Tensor) -> Tensor:
    return after < before - _GAIN * before.abs()
