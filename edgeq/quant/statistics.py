"""Streaming statistics of one tensor: exact ends, counts and a histogram whose result does not depend on the order.

The histogram covers `(-R, R)` with R a power of two. When a larger value arrives R doubles and neighbouring bins merge;
since every bin edge of the wide histogram is an edge of the narrow one and scaling by a power of two is exact in
floating point, the counts equal those of one pass at the final R. Hence statistics of parts merge to the statistics of
the whole, exactly, and memory is O(bins) whatever the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.errors import DataError

HALF_BINS = 4096
_MIN_EXPONENT = -100  # below 2^-100 the factor HALF_BINS / R would leave float32
_PIECE = 1 << 16  # temporaries stay in the processor's cache: ten times faster than whole tensors


class TensorStatistics:
    """Running minimum, maximum, counts and histogram of a tensor, and optionally the ends of each channel.

    Args:
        channel_axis: Axis whose indices get their own minimum and maximum; None for none.

    Attributes:
        count: Finite values seen.
        zeros: Of these, exact zeros (a rectifier's spike must not be smeared over a bin).
        non_finite: NaN and infinite values seen; they enter nothing else.
        low: Smallest finite value; +inf before the first.
        high: Largest finite value; -inf before the first.
        exponent: Histogram limit R = 2^exponent, the smallest power of two above every magnitude seen.
        histogram: int64 counts `(8192,)`. Bin `4096 + i` holds `[i w, (i + 1) w)` and bin `4095 - i` its mirror image
            `(-(i + 1) w, -i w]` without zero, with `w = R / 4096`.
        channel_low: Smallest finite value per channel `(C,)`, or None.
        channel_high: Largest finite value per channel `(C,)`, or None.
    """

    def __init__(self, channel_axis: int | None = None) -> None:
        self.channel_axis = channel_axis
        self.count = 0
        self.zeros = 0
        self.non_finite = 0
        self.low = math.inf
        self.high = -math.inf
        self.exponent = _MIN_EXPONENT
        self.histogram: NDArray[np.int64] = np.zeros(2 * HALF_BINS, dtype=np.int64)
        self.channel_low: NDArray[np.float32] | None = None
        self.channel_high: NDArray[np.float32] | None = None

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add all values of `x` (any shape; taken as float32).

        Raises:
            DataError: The number of channels differs from that of earlier tensors.
        """
        x = x.detach().to(torch.float32)
        if x.numel() == 0:
            return
        if self.channel_axis is not None:
            self._update_channels(x)
        flat = x.reshape(-1)
        low, high = (float(end) for end in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = flat[torch.isfinite(flat)]
            self.non_finite += flat.numel() - finite.numel()
            if finite.numel() == 0:
                return
            flat = finite
            low, high = (float(end) for end in torch.aminmax(flat))
        # + 0.0 turns -0.0 into 0.0, so that the ends do not depend on which of the two came first
        self.low, self.high = min(self.low, low) + 0.0, max(self.high, high) + 0.0
        self.count += flat.numel()
        self.zeros += flat.numel() - int(torch.count_nonzero(flat))
        self._widen(max(self.exponent, _exponent(max(-low, high))))
        factor = math.ldexp(HALF_BINS, -self.exponent)
        for piece in torch.split(flat, _PIECE):
            index = (piece * factor).to(torch.int32).add_(HALF_BINS)  # towards zero, for both signs
            index.add_(piece < 0, alpha=-1)
            self.histogram += torch.bincount(index, minlength=2 * HALF_BINS).numpy()

    def merge(self, other: TensorStatistics) -> None:
        """Add everything `other` has seen.

        Raises:
            DataError: The two watch different channels.
        """
        if self.channel_axis != other.channel_axis:
            raise _channels_differ(self.channel_axis, other.channel_axis)
        if other.channel_low is not None and other.channel_high is not None:
            self._merge_channels(other.channel_low, other.channel_high)
        self._widen(max(self.exponent, other.exponent))
        self.histogram += _merged(other.histogram, self.exponent - other.exponent)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count
        self.zeros += other.zeros
        self.non_finite += other.non_finite

    def outline(self, bins: int) -> NDArray[np.int64]:
        """How many values lie in each of `bins` equal parts `(bins,)` of low to high; within a fine bin of the truth.

        Args:
            bins: At least 1.
        """
        if not self.count:
            return np.zeros(bins, dtype=np.int64)
        centres = (np.arange(2 * HALF_BINS) + 0.5 - HALF_BINS) * math.ldexp(1, self.exponent) / HALF_BINS
        reach = np.clip(centres, self.low, self.high) - self.low
        place = np.minimum((reach / ((self.high - self.low) or 1.0) * bins).astype(np.int64), bins - 1)
        return np.bincount(place, weights=self.histogram, minlength=bins).astype(np.int64)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays that `numpy.savez` stores."""
        arrays: dict[str, NDArray[Any]] = {
            "counts": np.array([self.count, self.zeros, self.non_finite, self.exponent], dtype=np.int64),
            "ends": np.array([self.low, self.high], dtype=np.float64),
            "histogram": self.histogram.copy(),
        }
        if self.channel_axis is not None:
            arrays["channel_axis"] = np.array(self.channel_axis, dtype=np.int64)
        if self.channel_low is not None and self.channel_high is not None:
            arrays["channel_ends"] = np.stack([self.channel_low, self.channel_high])
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TensorStatistics:
        """Inverse of `to_arrays`.

        Raises:
            DataError: The arrays do not describe statistics.
        """
        try:
            axis = int(arrays["channel_axis"]) if "channel_axis" in arrays else None
            result = cls(axis)
            result.count, result.zeros, result.non_finite, result.exponent = (int(n) for n in arrays["counts"])
            result.low, result.high = (float(end) for end in arrays["ends"])
            result.histogram = np.array(arrays["histogram"], dtype=np.int64)
            if "channel_ends" in arrays:
                result.channel_low, result.channel_high = np.array(arrays["channel_ends"], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(str(error)) from error
        if result.histogram.shape != (2 * HALF_BINS,) or int(result.histogram.sum()) != result.count:
            raise _damaged("the histogram does not hold the counted values")
        return result

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorStatistics):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[k], theirs[k]) for k in mine)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def _widen(self, exponent: int) -> None:
        self.histogram = _merged(self.histogram, exponent - self.exponent)
        self.exponent = exponent

    def _update_channels(self, x: Tensor) -> None:
        axis = self.channel_axis
        if axis is None or not -x.ndim <= axis < x.ndim:
            raise _channels_differ(axis, f"a tensor of shape {tuple(x.shape)}")
        rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
        finite = torch.isfinite(rows)
        low = torch.where(finite, rows, math.inf).amin(1)
        high = torch.where(finite, rows, -math.inf).amax(1)
        self._merge_channels(low.numpy() + np.float32(0), high.numpy() + np.float32(0))

    def _merge_channels(self, low: NDArray[np.float32], high: NDArray[np.float32]) -> None:
        if self.channel_low is None or self.channel_high is None:
            self.channel_low, self.channel_high = low.copy(), high.copy()
            return
        if low.shape != self.channel_low.shape:
            raise _channels_differ(self.channel_low.size, low.size)
        self.channel_low = np.minimum(self.channel_low, low)
        self.channel_high = np.maximum(self.channel_high, high)


def _exponent(magnitude: float) -> int:
    """Smallest e >= -100 with `magnitude < 2^e`."""
    return max(math.frexp(magnitude)[1], _MIN_EXPONENT) if magnitude > 0 else _MIN_EXPONENT


def _merged(histogram: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """`histogram` after `doublings` doublings of its limit."""
    if doublings == 0:
        return histogram
    half = len(histogram) // 2
    # distance of a bin from the centre, halved per doubling; the same for both signs
    target = np.arange(half) >> min(doublings, 62)
    result = np.zeros_like(histogram)
    np.add.at(result, half + target, histogram[half:])
    np.add.at(result, half - 1 - target, histogram[half - 1 :: -1])
    return result


def _damaged(cause: str) -> DataError:
    return DataError(f"damaged statistics: {cause}", code="EQ-D032", hint="delete the calibration cache and run again")


def _channels_differ(expected: object, got: object) -> DataError:
    return DataError(
        f"channels changed during calibration: expected {expected}, got {got}",
        code="EQ-D033",
        hint="calibrate with inputs of one shape",
    )
