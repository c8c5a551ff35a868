"""Timing with an injected clock: what is alternated, when it stops, what the interval covers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.devices.timing import MAX_RUNS, MIN_RUNS, measure, median_interval, paired_latency
from edgeq.errors import DeviceError, UsageError


class Machine:
    """A clock and runs that take what they are told to, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order = ""

    def clock(self) -> float:
        return self.now

    def run(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def go() -> None:
            self.order += name
            self.now += seconds()

        return go


def test_runs_alternate_and_the_ratio_is_exact() -> None:
    machine = Machine()
    result = paired_latency(
        machine.run("f", lambda: 0.04), machine.run("q", lambda: 0.01), warmup=1, runs=4, clock=machine.clock
    )
    assert machine.order == "fq" + "fqqffqqf"
    assert (result.runs, result.unit) == (4, "ms")
    assert result.float_ms == pytest.approx(40)
    assert result.quantized_ms == pytest.approx(10)
    assert result.ratio == pytest.approx(0.25)
    assert result.verdict == "faster"
    assert {"unit", "float", "quantized", "ratio", "low", "high", "runs"} <= set(result.to_dict())


def test_auto_stops_early_when_quiet() -> None:
    machine = Machine()
    result = paired_latency(machine.run("f", lambda: 0.02), machine.run("q", lambda: 0.03), clock=machine.clock)
    assert result.runs == MIN_RUNS
    assert result.settled
    assert result.verdict == "slower"


def test_auto_goes_on_until_the_interval_is_narrow() -> None:
    machine, rng = Machine(), np.random.default_rng(0)
    result = paired_latency(
        machine.run("f", lambda: 0.01 * rng.lognormal(0, 0.1)),
        machine.run("q", lambda: 0.005 * rng.lognormal(0, 0.1)),
        max_seconds=1e6,
        clock=machine.clock,
    )
    assert result.settled
    assert MIN_RUNS < result.runs < MAX_RUNS
    assert result.low >= 0.98 * result.ratio
    assert result.high <= 1.02 * result.ratio
    assert result.ratio == pytest.approx(0.5, rel=0.03)


def test_auto_obeys_the_time_limit() -> None:
    machine, rng = Machine(), np.random.default_rng(0)
    result = paired_latency(
        machine.run("f", lambda: rng.uniform(1, 3)),
        machine.run("q", lambda: rng.uniform(1, 3)),
        max_seconds=30,
        clock=machine.clock,
    )
    assert 3 <= result.runs <= 10
    assert not result.settled
    assert result.verdict == "undecided"


def test_drift_does_not_move_the_ratio() -> None:
    """Frequency falls to a third during the measurement; the milliseconds lie, the ratio does not."""
    machine = Machine()
    result = paired_latency(
        machine.run("f", lambda: 0.01 * (1 + (machine.now - 100) / 5)),
        machine.run("q", lambda: 0.005 * (1 + (machine.now - 100) / 5)),
        runs=400,
        clock=machine.clock,
    )
    assert result.ratio == pytest.approx(0.5, rel=0.002)


def test_rare_stalls_do_not_move_the_ratio() -> None:
    machine, rng = Machine(), np.random.default_rng(3)
    slow = machine.run("f", lambda: 0.01 if rng.random() > 0.1 else 1.0)
    result = paired_latency(slow, machine.run("q", lambda: 0.004), runs=200, clock=machine.clock)
    assert result.ratio == pytest.approx(0.4, rel=1e-6)


def test_a_program_that_takes_turns_with_the_quick_file_does_not_make_it_slower() -> None:
    """Each run of the quick one waits for a turn now and then, as long as it would take the slow one."""
    machine, rng = Machine(), np.random.default_rng(5)
    result = paired_latency(
        machine.run("f", lambda: 0.01 + 0.001 * rng.random()),
        machine.run("q", lambda: 0.005 if rng.random() < 0.2 else 0.013),
        runs=200,
        clock=machine.clock,
    )
    assert result.low > 1
    assert result.fastest == pytest.approx(0.5, rel=0.02)
    assert (result.verdict, result.disturbed) == ("undecided", True)


def test_measure_reports_percentiles() -> None:
    machine = Machine()
    times = iter([0.5, 0.5, 0.5, *(0.001 * i for i in range(1, 101))])
    result = measure(machine.run("x", lambda: next(times)), runs=100, clock=machine.clock)
    assert result.p50 == pytest.approx(50.5)
    assert result.p90 == pytest.approx(90.1)
    assert result.p99 == pytest.approx(99.01)
    assert result.low < result.p50 < result.high


def test_auto_measure_stops() -> None:
    machine = Machine()
    assert measure(machine.run("x", lambda: 0.03), clock=machine.clock).runs == MIN_RUNS


def test_bad_settings_are_refused() -> None:
    machine = Machine()
    run = machine.run("x", lambda: 0.01)
    with pytest.raises(UsageError, match="runs"):
        measure(run, runs=0, clock=machine.clock)
    with pytest.raises(UsageError, match="time limit"):
        paired_latency(run, run, max_seconds=0, clock=machine.clock)
    with pytest.raises(DeviceError, match="clock"):
        measure(machine.run("x", lambda: 0.0), clock=machine.clock)


@pytest.mark.parametrize(("n", "low", "high"), [(6, 1, 6), (10, 2, 9), (20, 6, 15), (100, 40, 61)])
def test_interval_equals_the_published_table(n: int, low: int, high: int) -> None:
    """Ranks of the distribution-free 95 % interval of a median (Hahn and Meeker, table A.15)."""
    assert median_interval(np.arange(1.0, n + 1)) == (low, high)


@given(st.integers(1, 5))
def test_few_values_give_their_whole_range(n: int) -> None:
    assert median_interval(np.arange(float(n))) == (0, n - 1)


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        low, high = median_interval(rng.lognormal(0, 1, size=25))
        inside += low <= 1 <= high
    assert 0.945 < inside / 2000 < 0.985
