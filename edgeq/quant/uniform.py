"""Uniform grids: `real = scale * (code - zero_point)`, from a range and back and forth between reals and codes.

The arithmetic is that of `torch.ops.quantized_decomposed` (float32, multiply by the reciprocal, round half to even), so
a simulated tensor and the Q/DQ pair that the emitter inserts hold the same integers, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from edgeq.errors import UsageError
from edgeq.spec import PerChannel, PerGroup, QParams, QuantSpec

SCALE_FLOOR = 2.0**-40
"""Smallest scale of a range that is not zero: its reciprocal and every fixed-point multiplier stay representable."""

SCALE_RATIO_FLOOR = 2.0**-16
"""Smallest scale relative to the largest of the same tensor. A bias is stored as an int32 count of steps, so that a
bias of ordinary size on a nearly dead channel would overflow; an error of 2^-17 steps of the strongest is invisible."""


def qparams_from_range(low: ArrayLike, high: ArrayLike, spec: QuantSpec) -> QParams:
    """The grid that covers `[low, high]`, element by element.

    A grid always represents 0 exactly, so the range is first widened to include it. A symmetric grid has
    `scale = max(|low|, |high|) / qmax`; an asymmetric one `scale = (high - low) / (qmax - qmin)` and the nearest
    zero point to `qmin - low / scale` (Jacob et al. 2018, "Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference", section 3), which leaves both ends at most half a step outside.

    A zero range takes the largest scale of its tensor, or 1 when the whole tensor is zero: any scale represents it,
    and a tiny one would overflow the int32 bias of a dead channel or the requantization multiplier of a dead output.

    Args:
        low: Lower ends; shape `()`, `(channels,)` or `(rows, groups)`.
        high: Upper ends, same shape.
        spec: Bits and symmetry.

    Raises:
        UsageError: An end is not finite, or `low > high`.
    """
    lows, highs = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if lows.shape != highs.shape or not (np.isfinite(lows) & np.isfinite(highs) & (lows <= highs)).all():
        raise UsageError(
            f"not a range: [{_brief(lows)}, {_brief(highs)}]",
            code="EQ-U022",
            hint="both ends must be finite, the lower one first",
        )
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    exact = np.maximum(-lows, highs) / spec.qmax if spec.symmetric else (highs - lows) / (spec.qmax - spec.qmin)
    largest = float(exact.max(initial=0.0))
    floored = np.maximum(exact, max(SCALE_FLOOR, largest * SCALE_RATIO_FLOOR))
    scale = np.where(exact > 0, floored, max(largest, SCALE_FLOOR) if largest > 0 else 1.0).astype(np.float32)
    if spec.symmetric:
        return QParams(spec, scale, np.zeros(scale.shape, dtype=np.int32))
    zero_point = np.clip(np.rint(spec.qmin - lows / scale.astype(np.float64)), spec.qmin, spec.qmax)
    return QParams(spec, scale, zero_point.astype(np.int32))


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Codes of `x`: `clamp(round_half_even(x / scale) + zero_point, qmin, qmax)`, int32, same shape as `x`.

    Values must not be NaN (infinities saturate).

    Raises:
        UsageError: The grid's granularity does not fit the shape of `x`.
    """
    view, scale, zero_point = _aligned(x.detach().to(torch.float32), qparams)
    spec = qparams.spec
    codes = torch.clamp(torch.round(view * (1.0 / scale)) + zero_point, spec.qmin, spec.qmax)
    return codes.to(torch.int32).reshape(x.shape)


def dequantize(codes: Tensor, qparams: QParams) -> Tensor:
    """Reals of integer `codes`: `scale * (code - zero_point)`, float32, same shape as `codes`.

    Raises:
        UsageError: The grid's granularity does not fit the shape of `codes`.
    """
    view, scale, zero_point = _aligned(codes.to(torch.float32), qparams)
    reals: Tensor = (view - zero_point) * scale
    return reals.reshape(codes.shape)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """`x` moved to the nearest grid points: `dequantize(quantize(x))`, float32, same shape; carries no gradient.

    Raises:
        UsageError: The grid's granularity does not fit the shape of `x`.
    """
    return dequantize(quantize(x, qparams), qparams)


def group_shape(shape: torch.Size, size: int) -> tuple[int, int, int]:
    """`(rows, groups, size)` of a tensor `(rows, ...)` whose flattened rows are cut in groups of `size`.

    Raises:
        UsageError: The tensor has no rows, or a row is not a multiple of `size`: edgeq never pads a group.
    """
    row = int(np.prod(shape[1:], dtype=np.int64))
    if len(shape) < 2 or row % size:
        fitting = [g for g in (16, 32, 64, 128, 256) if len(shape) >= 2 and row % g == 0]
        raise UsageError(
            f"groups of {size} do not divide the rows of a tensor of shape {tuple(shape)}",
            code="EQ-U023",
            hint=f"use a group size of {fitting}" if fitting else "use one scale per channel for this layer",
        )
    return shape[0], row // size, size


def _aligned(x: Tensor, qparams: QParams) -> tuple[Tensor, Any, Any]:
    """`x`, scale and zero point in shapes that broadcast.

    A single scale stays a Python float, because torch.ops.quantized_decomposed takes its reciprocal in double
    precision; a vector of scales stays float32, likewise.
    """
    granularity = qparams.spec.granularity
    if qparams.scale.ndim == 0:
        return x, float(qparams.scale), int(qparams.zero_point)
    scale, zero_point = torch.from_numpy(qparams.scale), torch.from_numpy(qparams.zero_point)
    if isinstance(granularity, PerGroup):
        shape = group_shape(x.shape, granularity.size)
        if tuple(scale.shape) != shape[:2]:
            raise _misfit(x.shape, qparams.scale)
        return x.reshape(shape), scale[..., None], zero_point[..., None]
    axis = granularity.axis if isinstance(granularity, PerChannel) else 0
    if scale.ndim != 1 or not -x.ndim <= axis < x.ndim or x.shape[axis] != scale.shape[0]:
        raise _misfit(x.shape, qparams.scale)
    broadcast = [1] * x.ndim
    broadcast[axis] = -1
    return x, scale.reshape(broadcast), zero_point.reshape(broadcast)


def _misfit(shape: torch.Size, scale: NDArray[np.float32]) -> UsageError:
    return UsageError(
        f"scales of shape {scale.shape} do not fit a tensor of shape {tuple(shape)}",
        code="EQ-U023",
        hint="make the grid with weight_qparams() from the same tensor and spec",
    )


def _brief(ends: NDArray[np.float64]) -> str:
    return np.array2string(ends, threshold=6, precision=6)
