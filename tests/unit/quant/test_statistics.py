"""Streaming statistics: independent of order and partition, exact, and small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeq.errors import DataError
from edgeq.quant.statistics import HALF_BINS, TensorStatistics

ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False)
PARTS = st.lists(hnp.arrays(np.float32, st.integers(0, 30), elements=ANY_FLOAT), min_size=1, max_size=5)


def gather(parts: list[np.ndarray], axis: int | None = None) -> TensorStatistics:
    result = TensorStatistics(axis)
    for part in parts:
        result.update(torch.from_numpy(part))
    return result


@given(PARTS, st.randoms())
def test_order_and_partition_do_not_matter(parts: list[np.ndarray], random: object) -> None:
    whole = gather([np.concatenate(parts)])
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert gather(parts) == whole
    assert gather(shuffled) == whole
    merged = TensorStatistics()
    for part in shuffled:
        merged.merge(gather([part]))
    assert merged == whole


@given(PARTS)
def test_counts_and_ends_are_exact(parts: list[np.ndarray]) -> None:
    stats, everything = gather(parts), np.concatenate(parts)
    finite = everything[np.isfinite(everything)]
    assert stats.count == finite.size == stats.histogram.sum()
    assert stats.zeros == np.count_nonzero(finite == 0)
    assert stats.non_finite == everything.size - finite.size
    if finite.size:
        assert stats.low == finite.min()
        assert stats.high == finite.max()
        assert float(np.abs(finite).max()) < 2.0**stats.exponent


@given(hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e4, 1e4, width=32)))
def test_histogram_equals_numpy(values: np.ndarray) -> None:
    stats = gather([values])
    limit = 2.0**stats.exponent
    positive, _ = np.histogram(values[values >= 0].astype(np.float64), np.linspace(0, limit, HALF_BINS + 1))
    negative, _ = np.histogram(-values[values < 0].astype(np.float64), np.linspace(0, limit, HALF_BINS + 1))
    assert np.array_equal(stats.histogram[HALF_BINS:], positive)
    assert np.array_equal(stats.histogram[HALF_BINS - 1 :: -1], negative)


def test_widening_over_many_doublings_keeps_every_count() -> None:
    stats = gather([np.array([1e-20, -1e-20, 1e-3], np.float32), np.array([3e38, -3e38], np.float32)])
    assert stats.exponent == 128
    assert stats.histogram.sum() == stats.count == 5
    assert stats.histogram[[HALF_BINS, HALF_BINS - 1]].tolist() == [2, 1]


@given(hnp.arrays(np.float32, (4, 3, 2), elements=ANY_FLOAT), hnp.arrays(np.float32, (4, 3, 5), elements=ANY_FLOAT))
def test_channels_are_exact(first: np.ndarray, second: np.ndarray) -> None:
    stats = gather([first, second], axis=1)
    both = np.concatenate([first, second], axis=2).astype(np.float64).swapaxes(0, 1).reshape(3, -1)
    finite = np.isfinite(both)
    assert stats.channel_low is not None
    assert stats.channel_high is not None
    assert np.array_equal(stats.channel_low, np.where(finite, both, np.inf).min(1))
    assert np.array_equal(stats.channel_high, np.where(finite, both, -np.inf).max(1))
    parts = gather([first], axis=1)
    parts.merge(gather([second], axis=1))
    assert parts == stats


@given(PARTS)
def test_arrays_round_trip(parts: list[np.ndarray]) -> None:
    stats = gather(parts, axis=0) if len({p.size for p in parts}) == 1 and parts[0].size else gather(parts)
    assert TensorStatistics.from_arrays(stats.to_arrays()) == stats


def test_memory_does_not_grow() -> None:
    stats = TensorStatistics()
    for step in range(20):
        stats.update(torch.randn(1000) * 2.0**step)
    assert sum(a.nbytes for a in stats.to_arrays().values()) < 70_000
    assert stats.count == 20_000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_every_type_is_taken(dtype: torch.dtype) -> None:
    stats = TensorStatistics()
    stats.update(torch.tensor([[0, 1], [1, 1]]).to(dtype))
    assert (stats.low, stats.high, stats.count, stats.zeros) == (0, 1, 4, 1)


def test_layout_and_gradients_do_not_matter() -> None:
    x = torch.randn(5, 7, requires_grad=True)
    one, other = TensorStatistics(), TensorStatistics()
    one.update(x.t())
    other.update(x.detach().clone())
    assert one == other


def test_changed_channels_are_refused() -> None:
    stats = TensorStatistics(1)
    stats.update(torch.zeros(2, 3))
    for bad in (torch.zeros(2, 4), torch.zeros(3)):
        with pytest.raises(DataError) as caught:
            stats.update(bad)
        assert caught.value.code == "EQ-D033"
    with pytest.raises(DataError):
        stats.merge(TensorStatistics())


@pytest.mark.parametrize("field", ["counts", "ends", "histogram"])
def test_damaged_arrays_are_refused(field: str) -> None:
    arrays = gather([np.ones(3, np.float32)]).to_arrays()
    for damage in (np.zeros(0), np.ones(3), np.array(["x"])):
        with pytest.raises(DataError) as caught:
            TensorStatistics.from_arrays({**arrays, field: damage})
        assert caught.value.code == "EQ-D032"
    with pytest.raises(DataError):
        TensorStatistics.from_arrays({k: v for k, v in arrays.items() if k != field})


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50), st.integers(1, 20))
def test_an_outline_counts_every_value_once(values: list[float], bins: int) -> None:
    statistics = TensorStatistics()
    statistics.update(torch.tensor(values))
    counts = statistics.outline(bins)
    assert counts.shape == (bins,)
    assert counts.sum() == statistics.count == len(values)


def test_an_outline_shows_where_values_lie() -> None:
    statistics = TensorStatistics()
    assert TensorStatistics().outline(3).tolist() == [0, 0, 0]
    statistics.update(torch.tensor([0.0] * 7 + [1.5] * 2 + [4.0]))
    assert statistics.outline(4).tolist() == [7, 2, 0, 1]
