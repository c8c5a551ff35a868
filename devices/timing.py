"""Latency: percentiles of one model, and the ratio of two models measured side by side in one process.

Milliseconds move by tens of percent with load, frequency and placement of the process; the ratio of two neighbouring
runs hardly does. `paired_latency` therefore alternates the two models A B B A A B B A ... (so that a linear drift
cancels within each two pairs) and reports the median of the paired ratios with a distribution-free confidence
interval from order statistics (Hahn and Meeker, Statistical Intervals, section 5.2; binomial with p = 1/2). Times
measured in different processes are never compared.

A program that takes turns with the threads of a run is beyond what pairs can cancel: every join of threads waits for
the next turn, which costs a quick file as much as a slow one. Beside one busy process on two cores the median ratio
of an INT8 vit_nano in LiteRT, 0.58 alone, was anything between 0.31 and 0.94, while the fastest tenths of the runs
said 0.40 to 0.50 (tools/bench/busy.py); with less of a lead a file looks slower than float. So a verdict needs the
agreement of both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DeviceError, UsageError

if TYPE_CHECKING:  # this file also runs on devices with Python 3.9
    from typing import TypeAlias

Runs: TypeAlias = "Literal['auto'] | int"
Clock: TypeAlias = Callable[[], float]

Enough: TypeAlias = Callable[["NDArray[np.floating[Any]]", float], bool]

MIN_RUNS = 15
PARTS = 10
MAX_RUNS = 2000
DRIFT_RUNS = 18  # six in each third, the fewest that have a 95 % interval
UNDISTURBED = 10  # percent of the runs that another program hardly touches, however busy
MIN_SECONDS = 0.3  # so that a frequency ramp or one neighbour's burst does not decide


@dataclass(frozen=True)
class Latency:
    """Latency of one model.

    Args:
        p50: Median, milliseconds.
        p90: 90th percentile, milliseconds.
        p99: 99th percentile, milliseconds; close to the maximum below 100 runs.
        runs: Timed runs.
        low: Lower end of the 95 % interval of the median.
        high: Upper end of it.
        least: Fastest run, milliseconds.
        settled: Whether the interval reached the wished width, and tenths of the runs agree within twice that.
        drift: Median of the last third of the runs over that of the first, less 1; None below `DRIFT_RUNS` runs, and
            where the 95 % intervals of the two overlap.
        unit: Always `ms`.
    """

    p50: float
    p90: float
    p99: float
    runs: int
    low: float
    high: float
    least: float
    settled: bool
    drift: float | None = None
    unit: str = "ms"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class PairedLatency:
    """Latency of two models measured alternately.

    Args:
        float_ms: Median of the float model, milliseconds.
        quantized_ms: Median of the quantized model, milliseconds.
        ratio: Median of the paired ratios quantized / float; below 1 the quantized model is faster.
        low: Lower end of the 95 % interval of the median ratio.
        high: Upper end of it.
        runs: Timed pairs.
        settled: Whether the interval reached the wished width before time or runs ended.
        fastest: Ratio of the 10th percentiles, quantized / float: what the runs say that nothing disturbed.
        unit: Always `ms`.
    """

    float_ms: float
    quantized_ms: float
    ratio: float
    low: float
    high: float
    runs: int
    settled: bool
    fastest: float
    unit: str = "ms"

    @property
    def verdict(self) -> Literal["faster", "slower", "undecided"]:
        """Which side of 1 the whole interval and the fastest runs lie on."""
        if max(self.high, self.fastest) < 1:
            return "faster"
        return "slower" if min(self.low, self.fastest) > 1 else "undecided"

    @property
    def disturbed(self) -> bool:
        """Whether the whole interval lies on one side of 1 and the fastest runs on the other."""
        return self.fastest < 1 < self.low or self.high < 1 < self.fastest

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `unit`, `float`, `quantized`, `ratio`, `low`, `high`, `runs`, `settled`, `fastest`."""
        return {
            "unit": self.unit,
            "float": self.float_ms,
            "quantized": self.quantized_ms,
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "runs": self.runs,
            "settled": self.settled,
            "fastest": self.fastest,
        }


def paired_latency(
    float_run: Callable[[], object],
    quant_run: Callable[[], object],
    *,
    runs: Runs = "auto",
    warmup: int = 3,
    max_seconds: float = 20.0,
    width: float = 0.02,
    clock: Clock = time.perf_counter,
) -> PairedLatency:
    """Time two models against each other in this process.

    Args:
        float_run: Runs the float model once.
        quant_run: Runs the quantized model once.
        runs: Pairs to time, or `auto`: at least 15 over 0.3 s, until the interval is narrow enough.
        warmup: Untimed runs of each model first.
        max_seconds: `auto` stops after this long, warm-up included, with at least three pairs.
        width: `auto` stops when both ends of the 95 % interval lie within this share of the ratio.
        clock: Returns seconds.

    Raises:
        UsageError: EQ-U041 for fewer than one run or a time limit that is not positive.
        DeviceError: EQ-X002 when the clock does not advance during a run.
    """
    limit, start = _limit(runs, warmup, max_seconds), clock()
    for _ in range(warmup):
        float_run()
        quant_run()
    first: list[float] = []
    second: list[float] = []
    looks = _Looks(width, clock)
    while len(first) < limit:
        if len(first) % 2 == 0:
            first.append(_once(float_run, clock))
            second.append(_once(quant_run, clock))
        else:
            second.append(_once(quant_run, clock))
            first.append(_once(float_run, clock))
        if runs == "auto" and (
            looks.settled(np.asarray(second) / np.asarray(first)) or (clock() - start > max_seconds and len(first) >= 3)
        ):
            break
    ratios = np.asarray(second) / np.asarray(first)
    low, high = median_interval(ratios)
    median = float(np.median(ratios))
    return PairedLatency(
        float_ms=1e3 * float(np.median(first)),
        quantized_ms=1e3 * float(np.median(second)),
        ratio=median,
        low=low,
        high=high,
        runs=len(first),
        settled=_narrow(ratios, width),
        fastest=float(np.percentile(second, UNDISTURBED) / np.percentile(first, UNDISTURBED)),
    )


def measure(
    run: Callable[[], object],
    *,
    runs: Runs = "auto",
    warmup: int = 3,
    max_seconds: float = 10.0,
    width: float = 0.02,
    clock: Clock = time.perf_counter,
    min_seconds: float = MIN_SECONDS,
    observe: Callable[[float], None] | None = None,
) -> Latency:
    """Time one model; the arguments are those of `paired_latency`, with the interval of the median in `auto`.

    `auto` goes on for `min_seconds` at least. `observe` is given the seconds of each run before the next.

    Raises:
        UsageError: EQ-U041 for fewer than one run or a time limit that is not positive.
        DeviceError: EQ-X002 when the clock does not advance during a run.
    """
    limit, start = _limit(runs, warmup, max_seconds), clock()
    for _ in range(warmup):
        run()
    seconds: list[float] = []
    looks = _Looks(width, clock, min_seconds, _steady)
    while len(seconds) < limit:
        seconds.append(_once(run, clock))
        if observe is not None:
            observe(seconds[-1])
        if runs == "auto" and (
            looks.settled(np.asarray(seconds)) or (clock() - start > max_seconds and len(seconds) >= 3)
        ):
            break
    return describe(1e3 * np.asarray(seconds), width)


def describe(values: NDArray[np.floating[Any]], width: float = 0.02) -> Latency:
    """Percentiles, interval and drift of measured times `(n,)` in milliseconds, in the order of the runs."""
    p50, p90, p99 = (float(v) for v in np.percentile(values, (50, 90, 99)))
    low, high = median_interval(values)
    return Latency(p50, p90, p99, len(values), low, high, float(values.min()), _steady(values, width), _drift(values))


def _drift(values: NDArray[np.floating[Any]]) -> float | None:
    third = len(values) // 3
    if len(values) < DRIFT_RUNS:
        return None
    (low, high), (later_low, later_high) = median_interval(values[:third]), median_interval(values[-third:])
    if later_low <= high and low <= later_high:
        return None
    return float(np.median(values[-third:]) / np.median(values[:third])) - 1


def median_interval(values: NDArray[np.floating[Any]], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free confidence interval of the median of `values` `(n,)`.

    The interval between the k-th smallest and k-th largest value holds the median with probability
    `1 - 2 P(Binomial(n, 1/2) < k)`; the largest k that keeps `confidence` is taken, and the whole range where even
    that falls short (fewer than 6 values).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    tail, k = 0.0, 0
    while k < n // 2:
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if 2 * tail > 1 - confidence:
            break
        k += 1
    k = max(k, 1)
    return float(ordered[k - 1]), float(ordered[n - k])


def _narrow(values: NDArray[np.floating[Any]], width: float) -> bool:
    if len(values) < MIN_RUNS:
        return False
    low, high = median_interval(values)
    median = float(np.median(values))
    return median - low <= width * median and high - median <= width * median


def _steady(values: NDArray[np.floating[Any]], width: float) -> bool:
    """Whether the interval is narrow, and the medians of consecutive parts agree within twice as much.

    The interval takes runs for independent, which they are not where other programs come and go.
    """
    if len(values) < 6 * PARTS:
        return _narrow(values, width)
    parts = np.array([np.median(part) for part in np.array_split(values, PARTS)])
    low, high = median_interval(parts)
    median = float(np.median(values))
    return _narrow(values, width) and median - low <= 2 * width * median and high - median <= 2 * width * median


class _Looks:
    """When to look at the interval: at growing distances, since looking after every run would stop at lucky ones."""

    def __init__(
        self, width: float, clock: Clock, min_seconds: float = MIN_SECONDS, enough: Enough | None = None
    ) -> None:
        self.width = width
        self.enough = enough or _narrow
        self.min_seconds = min_seconds
        self.clock = clock
        self.start = clock()
        self.next = MIN_RUNS

    def settled(self, values: NDArray[np.floating[Any]]) -> bool:
        """Whether it is time to look and the interval is narrow."""
        if len(values) < self.next or self.clock() - self.start < self.min_seconds:
            return False
        self.next = math.ceil(1.2 * len(values))
        return self.enough(values, self.width)


def _limit(runs: Runs, warmup: int, max_seconds: float) -> int:
    if runs != "auto" and runs < 1:
        raise UsageError(f"runs must be `auto` or at least 1, not {runs}", code="EQ-U041", hint="use --runs auto")
    if warmup < 0 or max_seconds <= 0:
        message = f"warm-up {warmup} and time limit {max_seconds} s must be positive"
        raise UsageError(message, code="EQ-U041", hint="use --runs auto")
    return MAX_RUNS if runs == "auto" else runs


def _once(run: Callable[[], object], clock: Clock) -> float:
    before = clock()
    run()
    seconds = clock() - before
    if seconds <= 0:
        raise DeviceError("the clock did not advance during a run", code="EQ-X002", hint="run `edgeq doctor`")
    return seconds
