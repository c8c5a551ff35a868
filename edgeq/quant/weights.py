"""Grids of weights and their rounding: the weight itself is the sample, so no data is needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.errors import ModelError, UsageError, unknown_name
from edgeq.quant.ranges import Array, half_to_all, parse_estimator, search_clip
from edgeq.quant.rounding.table import ROUNDERS, get_rounder
from edgeq.quant.uniform import group_shape, qparams_from_range, quantize
from edgeq.spec import PerChannel, PerGroup, QParams, QuantSpec

_STEPS = 32  # that are tried for a row of two-level scales


@torch.no_grad()
def weight_qparams(weight: Tensor, spec: QuantSpec, *, name: str = "weight") -> QParams:
    """The grid of a weight: one scale for the tensor, for each index of an axis, or for each group of a row.

    Args:
        weight: Any shape `(...)`; scales come out as `()`, `(channels,)` or `(rows, groups)`.
        spec: Grid and estimator (`minmax`, `percentile:P`, `mse` or `sparse_grid`).
        name: Attribute path, for messages.

    Raises:
        ModelError: The weight is empty or holds NaN or infinity.
        UsageError: The granularity does not fit the shape.
    """
    _require_finite(weight, name)
    if spec.two_level:
        return _fit_steps(weight, spec, name)
    rows, shape = _rows(weight.detach().to(torch.float32), spec)
    method, parameter = parse_estimator(spec.observer)
    low, high = (end.double().numpy() for end in torch.aminmax(rows, dim=1))
    if method.parameter and parameter < 1:
        low, high = np.quantile(rows.numpy(), [1 - parameter, parameter], axis=1).astype(np.float64)
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    elif spec.observer == "mse":
        low, high = search_clip(low, high, lambda a, b: _row_errors(rows, a, b, spec), symmetric=spec.symmetric)
    elif spec.observer == "sparse_grid":
        low, high = half_to_all(low, high, lambda a, b: _row_errors(rows, a, b, spec))
    return qparams_from_range(low.reshape(shape), high.reshape(shape), spec)


@torch.no_grad()
def round_weights(weight: Tensor, qparams: QParams, rounding: str = "nearest", *, name: str = "weight") -> Tensor:
    """Integer codes of a weight, int32, of its shape, by a rounding that needs no data.

    Args:
        weight: The weight, any shape.
        qparams: Its grid.
        rounding: Key of `edgeq.quant.rounding.ROUNDERS`; those that need data take a `LayerProblem` instead.
        name: Attribute path, for messages.

    Raises:
        UsageError: Unknown rounding, one that needs data, or a grid that does not fit the shape.
        ModelError: The weight holds NaN or infinity.
    """
    if get_rounder(rounding).needs_data:
        known = ", ".join(key for key, entry in ROUNDERS.items() if not entry.needs_data)
        raise UsageError(f"rounding {rounding!r} needs calibration data", code="EQ-U225", hint=f"without: {known}")
    _require_finite(weight, name)
    return quantize(weight, qparams)


def cover_bias(qparams: QParams, bias: Tensor, input_scale: float) -> QParams:
    """The grid of a weight with scales raised where the bias would overflow.

    Integer kernels hold a bias as an int32 count of `input_scale * weight_scale`; converters clamp what does not fit
    without a word. 2^30 leaves the other half of the range to the sum of products.

    Args:
        qparams: Symmetric grid of a weight; scale `()`, or `(channels,)` of the output channels.
        bias: `(channels,)`.
        input_scale: Scale of the layer's input.
    """
    least = bias.detach().abs().double().numpy() / (input_scale * 2.0**30)
    if qparams.scale.ndim == 0:
        least = least.max(initial=0.0)
    return replace(qparams, scale=np.maximum(qparams.scale, np.asarray(least, dtype=np.float32)))


def _require_finite(weight: Tensor, name: str) -> None:
    bad = weight.numel() - int(torch.isfinite(weight).sum())
    if bad or weight.numel() == 0:
        what = f"{bad} of {weight.numel()} values are NaN or infinite" if bad else "it has no values"
        raise ModelError(
            f"cannot quantize {name}: {what}",
            code="EQ-M030",
            place=name,
            hint="the checkpoint is damaged or training diverged: load another one",
        )


def _rows(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, tuple[int, ...]]:
    """The weight as one row per scale, and the shape of the scales."""
    granularity = spec.granularity
    if isinstance(granularity, PerGroup):
        rows, groups, size = group_shape(weight.shape, granularity.size)
        return weight.reshape(rows * groups, size), (rows, groups)
    if isinstance(granularity, PerChannel):
        if not -weight.ndim <= granularity.axis < weight.ndim:
            raise unknown_name("axis", str(granularity.axis), map(str, range(weight.ndim)), code="EQ-U023")
        channels = weight.shape[granularity.axis]
        return weight.movedim(granularity.axis, 0).reshape(channels, -1), (channels,)
    return weight.reshape(1, -1), ()


def _fit_steps(weight: Tensor, spec: QuantSpec, name: str) -> QParams:
    """Two-level scales with the least squared error: many steps are tried for a row, with each the best multiples.

    Two-level scales: Dai et al. 2021, "VS-Quant: Per-vector Scaled Quantization for Accurate Low-Precision Neural
    Network Inference" (arXiv 2102.04503), section 4. Deviations: code times scale is an integer of 8 bits that takes
    the place of the weight, so that no kernel has to know of groups; and both levels are fitted together to the error
    that they leave, where the paper rounds the inner scales for an outer one that the largest of them gives. A row on
    which groups bring nothing has one scale.
    """
    group = spec.granularity
    assert isinstance(group, PerGroup)
    free = weight_qparams(weight, replace(spec, granularity=replace(group, two_level=False)), name=name)
    alone = weight_qparams(weight, replace(spec, granularity=PerChannel(0)), name=name)
    rows, _ = _rows(weight.detach().to(torch.float32), spec)
    shape, largest = free.scale.shape, spec.largest_multiple
    wanted = free.scale.astype(np.float64)
    alive = (rows.abs().amax(1) > 0).numpy().reshape(shape)  # a group of zeros is on every grid
    top = np.where(alive, wanted, 0.0).max(1, keepdims=True)
    top = np.where(top > 0, top, wanted.max(1, keepdims=True))

    def errors(scale: Array) -> Array:
        flat = scale.reshape(-1).astype(np.float32)
        return _errors(rows, flat, np.zeros(flat.shape, np.int32), spec).reshape(shape)

    best = np.broadcast_to(alone.scale[:, None].astype(np.float64), shape)
    least = errors(best).sum(1, keepdims=True)
    for parts in np.geomspace(largest / 2, largest * 2, _STEPS):
        step = top / parts
        below = np.clip(np.floor(wanted / step), 1, largest)
        above = np.minimum(below + 1, largest)
        found = errors(below * step), errors(above * step)
        scale, total = np.where(found[0] <= found[1], below, above) * step, np.minimum(*found).sum(1, keepdims=True)
        best, least = np.where(total < least, scale, best), np.minimum(total, least)
    return QParams(spec, best.astype(np.float32), free.zero_point)


def _row_errors(rows: Tensor, low: Array, high: Array, spec: QuantSpec) -> Array:
    """Squared error of each row on the grid of its range."""
    qparams = qparams_from_range(low, high, spec)
    return _errors(rows, qparams.scale, qparams.zero_point, spec)


def _errors(rows: Tensor, scales: NDArray[np.float32], zero_points: NDArray[np.int32], spec: QuantSpec) -> Array:
    """Squared error of each row on its grid; float32 maths as in `quantize`, summed in double."""
    scale, zero_point = torch.from_numpy(scales)[:, None], torch.from_numpy(zero_points)[:, None]
    codes = torch.round(rows * (1.0 / scale)).clamp_(spec.qmin - zero_point, spec.qmax - zero_point)
    errors = codes.mul_(scale).sub_(rows).square_().sum(1, dtype=torch.float64)
    result: Array = errors.numpy()
    return result
