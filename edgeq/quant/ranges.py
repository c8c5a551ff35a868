"""Range estimators: from the statistics of a tensor to the interval that its grid should cover.

Clipping is a bet that rare large values do not matter. For transformers they often do: in a ViT-S, clipping the massive
activations by least squares costs the worst image up to 11 dB, so `minmax` is the safe choice until outliers have been
removed by a transform; `percentile:P` includes 1.0, the same as `minmax`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DataError, UsageError, unknown_name
from edgeq.quant.statistics import HALF_BINS, TensorStatistics
from edgeq.quant.uniform import qparams_from_range
from edgeq.spec import PerTensor, QParams, QuantSpec

Array = NDArray[np.float64]
Estimator = Callable[[TensorStatistics, QuantSpec, float], tuple[float, float]]
ClipError = Callable[[Array, Array], Array]

_COARSE = 2.0 ** (-np.arange(1, 49) / 4)  # to 1/4096 of the range: a grid that stops early misses the optimum
_FINE = (2.0 ** (np.array([-3, -2, -1, 1, 2, 3]) / 16), 2.0 ** (np.array([-3, -2, -1, 1, 2, 3]) / 64))
_GAIN = 1 - 1e-6  # smaller gains are rounding noise; ignoring them keeps the choice reproducible


@dataclass(frozen=True)
class RangeMethod:
    """A named range estimator.

    Args:
        summary: What it does, for tables.
        parameter: Name of the number after the colon, empty when it takes none.
        estimate: `(statistics, spec, parameter) -> (low, high)`.
    """

    summary: str
    parameter: str
    estimate: Estimator


def choose_range(stats: TensorStatistics, spec: QuantSpec) -> tuple[float, float]:
    """The interval, including 0, that the grid of an activation should cover, by the spec's observer.

    Raises:
        UsageError: Unknown observer, or a granularity other than per tensor.
        DataError: The statistics are empty.
    """
    method, parameter = parse_estimator(spec.observer)
    if not isinstance(spec.granularity, PerTensor):
        raise UsageError(
            f"an activation has one scale, not {spec.granularity}",
            code="EQ-U024",
            hint="use PerTensor for activations; per-channel and per-group scales are for weights",
        )
    if stats.count == 0:
        raise DataError("no value was seen in calibration", code="EQ-D031", hint="calibrate with at least one sample")
    low, high = method.estimate(stats, spec, parameter)
    return min(low, 0.0), max(high, 0.0)


def parse_estimator(text: str) -> tuple[RangeMethod, float]:
    """Split an observer such as `percentile:0.9999` into its method and its parameter (0 when it takes none).

    Raises:
        UsageError: Unknown name, or a parameter that is missing, superfluous or out of bounds.
    """
    name, colon, value = text.partition(":")
    if name not in ESTIMATORS:
        raise unknown_name("range estimator", name, ESTIMATORS, code="EQ-U020", command="edgeq methods")
    method = ESTIMATORS[name]
    if not method.parameter:
        if colon:
            raise UsageError(f"{name} takes no parameter: {text!r}", code="EQ-U021", hint=f"write {name}")
        return method, 0.0
    try:
        parameter = float(value)
    except ValueError:
        parameter = float("nan")
    if not 0.5 < parameter <= 1:
        raise UsageError(
            f"{text!r}: {method.parameter} must be a number above 0.5 and at most 1",
            code="EQ-U021",
            hint=f"write {name}:0.9999 for example",
        )
    return method, parameter


def _minmax(stats: TensorStatistics, _spec: QuantSpec, _parameter: float) -> tuple[float, float]:
    return stats.low, stats.high


def _percentile(stats: TensorStatistics, _spec: QuantSpec, p: float) -> tuple[float, float]:
    """Values below which `1 - p` and `p` of the samples lie, interpolated inside a bin."""
    if p == 1:
        return stats.low, stats.high
    edges, counts = cells(stats)
    total = np.concatenate([[0], np.cumsum(counts)])
    low, high = np.interp(np.array([1 - p, p]) * stats.count, total, edges)
    return float(low), float(high)


def _mse(stats: TensorStatistics, spec: QuantSpec, _parameter: float) -> tuple[float, float]:
    """The clip that minimises the squared error over the histogram."""
    edges, counts = cells(stats)

    def error(low: Array, high: Array) -> Array:
        return np.array([cell_error(edges, counts, qparams_from_range(low[0], high[0], spec))])

    low, high = search_clip(np.array([stats.low]), np.array([stats.high]), error, symmetric=spec.symmetric)
    return float(low[0]), float(high[0])


def _sparse_grid(stats: TensorStatistics, spec: QuantSpec, _parameter: float) -> tuple[float, float]:
    """The clip between half and all of the range with the least squared error (LiDAR-PTQ, arXiv 2401.15865).

    Maps seen from above are nine tenths zeros, and what is not is rare and matters: rules of shares and entropy cut it
    off. Here zeros weigh nothing, since every grid holds 0 exactly, and no more than half is ever cut. Deviations: by
    the error of the tensor and not of the layer's output, and on a grid with a zero point where the spec wants one.
    """
    edges, counts = cells(stats)

    def error(low: Array, high: Array) -> Array:
        return np.array([cell_error(edges, counts, qparams_from_range(low[0], high[0], spec))])

    low, high = half_to_all(np.array([stats.low]), np.array([stats.high]), error)
    return float(low[0]), float(high[0])


ESTIMATORS: Mapping[str, RangeMethod] = {
    "minmax": RangeMethod("smallest to largest value seen; clips nothing", "", _minmax),
    "percentile": RangeMethod("cuts the share 1-P of the values at each end", "P", _percentile),
    "mse": RangeMethod("the clip with the least squared error", "", _mse),
    "sparse_grid": RangeMethod("the same between half and all of the range, for sparse maps", "", _sparse_grid),
}


def cells(stats: TensorStatistics) -> tuple[Array, Array]:
    """The distribution as cells of even density: edges `(m + 1,)` ascending, counts `(m,)`.

    The outermost cells are cut at the exact ends, and exact zeros get a cell of zero width.
    """
    width = 2.0 ** (stats.exponent - HALF_BINS.bit_length() + 1)
    grid = np.arange(-HALF_BINS, HALF_BINS + 1) * width
    edges = np.insert(np.clip(grid, stats.low, stats.high), HALF_BINS, np.clip(0.0, stats.low, stats.high))
    counts = stats.histogram.astype(np.float64)
    counts[HALF_BINS] -= stats.zeros
    counts = np.insert(counts, HALF_BINS, float(stats.zeros))
    used = np.flatnonzero(counts)
    first, last = used[0], used[-1] + 1
    return edges[first : last + 1], counts[first:last]


def cell_error(edges: Array, counts: Array, qparams: QParams) -> float:
    """Total squared quantization error of a distribution of cells on a per-tensor grid.

    Inside a cell the density is even, so the integral of the squared error is exact, also where a cell is wider than
    a step (outliers stretch the histogram): with `u = x / scale`, n its nearest code and `r = u - n`, the
    antiderivative of `r^2` is `(n - n0) / 12 + r^3 / 3`; beyond the ends n stays and the cubic continues.
    """
    spec, scale, zero = qparams.spec, float(qparams.scale), int(qparams.zero_point)
    u = edges / scale
    nearest = np.clip(np.rint(u), spec.qmin - zero, spec.qmax - zero)
    residue = u - nearest
    integral = nearest / 12 + residue * residue * residue / 3  # numpy raises to the power 3 slowly
    width = np.diff(u)
    # a cell much narrower than its distance from 0 would lose the difference of integrals to cancellation
    thin = width < 1e-6 * np.maximum(1.0, np.abs(u[1:]))
    mean = np.where(thin, residue[1:] ** 2, np.diff(integral) / np.where(thin, 1.0, width))
    return float(np.dot(mean, counts)) * scale**2


def search_clip(low: Array, high: Array, error: ClipError, *, symmetric: bool) -> tuple[Array, Array]:
    """Shrink ranges to reduce an error, many independent ranges at once; never worse than the ranges given.

    Both ends shrink together (by a common factor, and to a common magnitude), then each on its own, down to 1/4096;
    then both are refined to about 1 %. No step stops at the first local minimum.

    Args:
        low: Lower ends `(n,)`, made to include 0.
        high: Upper ends `(n,)`, likewise.
        error: Error `(n,)` of candidate ends `(n,)`, `(n,)`.
        symmetric: Keep `low = -high`.
    """
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    limit = np.maximum(-low, high)
    if symmetric:
        low, high = -limit, limit
    search = _Search(low, high, error)
    for factor in _COARSE:
        search.offer(low * factor, high * factor)
        if not symmetric:
            search.offer(np.maximum(low, -limit * factor), np.minimum(high, limit * factor))
    if symmetric:
        for steps in _FINE:
            start = search.high
            for factor in steps:
                end = np.minimum(start * factor, limit)
                search.offer(-end, end)
        return search.low, search.high
    for _ in range(2):
        for factor in _COARSE:
            search.offer(low * factor, search.high)
        for factor in _COARSE:
            search.offer(search.low, high * factor)
    for steps in _FINE:
        start = search.low
        for factor in steps:
            search.offer(np.maximum(start * factor, low), search.high)
        start = search.high
        for factor in steps:
            search.offer(search.low, np.minimum(start * factor, high))
    return search.low, search.high


def half_to_all(low: Array, high: Array, error: ClipError) -> tuple[Array, Array]:
    """The share of each range, from all of it to half, with the least error; as `search_clip`, which cuts further."""
    search = _Search(low, high, error)
    for share in np.linspace(1.0, 0.5, 101)[1:]:  # of equal errors the first, which clips least
        search.offer(low * share, high * share)
    return search.low, search.high


class _Search:
    """Best ends so far, each range for itself."""

    def __init__(self, low: Array, high: Array, error: ClipError) -> None:
        self.low, self.high, self._error = low, high, error
        self._best = error(low, high)

    def offer(self, low: Array, high: Array) -> None:
        found = self._error(low, high)
        better = found < self._best * _GAIN
        self._best = np.where(better, found, self._best)
        self.low, self.high = np.where(better, low, self.low), np.where(better, high, self.high)
