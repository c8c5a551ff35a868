"""Moments: sums that merge, split and refuse bad rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import DataError, InternalError, UsageError
from edgeq.quant.rounding.moments import LayerMoments, Moments


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to what float32 products lose."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_moments_are_the_plain_sums() -> None:
    xq, x, w = rows(50, 6), rows(50, 6, 1) + 3, rows(50, 1, 2)[:, 0].abs()
    m = Moments.of(xq, x, w)
    q, f, v = xq.double(), x.double(), w.double()
    close(m.gram, q.T @ (v[:, None] * q))
    close(m.gram + m.drift, q.T @ (v[:, None] * f))
    close(m.mean_q, v @ q / v.sum())
    close(m.mean_x, v @ f / v.sum())
    assert (m.rows, m.width) == (50, 6)
    centred = q - m.mean_q
    close(m.covariance(), centred.T @ (v[:, None] * centred) / v.sum())
    close(m.covariance(centred=False), m.gram / m.mass)
    drift = (f - q) - (v @ (f - q)) / v.sum()
    close(m.drift_covariance(), centred.T @ (v[:, None] * drift) / v.sum())
    close(m.drift_covariance(centred=False), q.T @ (v[:, None] * (f - q)) / v.sum())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 5), st.integers(0, 1000))
def test_batches_in_any_cut_give_the_same_moments(cuts: list[int], every: int, seed: int) -> None:
    if every == 1:
        every = 0
    x, xq = rows(sum(cuts), 4, seed), rows(sum(cuts), 4, seed + 1)
    whole, parts = Moments.of(xq, x), LayerMoments(4, holdout_every=every)
    for a, b in zip(xq.split(cuts), x.split(cuts), strict=True):
        parts.update(a, b)
    assert parts.rows == whole.rows == parts.total.rows
    close(parts.total.gram, whole.gram)
    close(parts.total.drift, whole.drift)
    held = sum(n for i, n in enumerate(cuts, 1) if every and i % every == 0)
    assert parts.holdout.rows == held


def test_more_rows_than_one_chunk() -> None:
    x = rows(9001, 3)
    close(Moments.of(x).gram, x.double().T @ x.double())


def test_accumulators_merge_part_by_part() -> None:
    one, two = LayerMoments(3), LayerMoments(3)
    one.update(rows(5, 3), holdout=False)
    two.update(rows(7, 3), rows(7, 3, 1), holdout=True)
    one.merge(two)
    assert (one.train.rows, one.holdout.rows) == (5, 7)
    assert bool(one.holdout.drift.any())
    assert not bool(one.train.drift.any())


def test_weights_of_two_equal_a_row_twice() -> None:
    x = rows(6, 3)
    twice = Moments.of(x, weights=torch.tensor([2.0, 1, 0, 1, 1, 1]))
    close(twice.gram, Moments.of(x[[0, 0, 1, 3, 4, 5]]).gram)


def test_a_constant_input_has_exactly_no_variance() -> None:
    x = rows(999, 4)
    x[:, 2] = 1000.1
    covariance = Moments.of(x).covariance()
    assert not bool(covariance[2].any())
    assert bool((covariance.diagonal()[[0, 1, 3]] > 0.5).all())


def test_no_rows_mean_zero_everywhere() -> None:
    empty = Moments.of(torch.zeros(0, 3))
    for value in (empty.covariance(), empty.drift_covariance(), empty.mean_x, empty.mean_q):
        assert not bool(value.any())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_are_refused_by_name(bad: float) -> None:
    x = rows(4, 3)
    broken = x.clone()
    broken[1, 1] = bad
    layer = LayerMoments(3)
    with pytest.raises(DataError, match="quantized input"):
        layer.update(broken, x)
    with pytest.raises(DataError, match="float input"):
        layer.update(x, broken)
    with pytest.raises(DataError, match="row weight"):
        layer.update(x, x, broken[:, 1])
    with pytest.raises(DataError, match="negative"):
        layer.update(x, x, torch.tensor([1.0, -1, 1, 1]))
    assert layer.rows == 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    layer = LayerMoments(3)
    for args in ((rows(4, 2),), (rows(4, 3), rows(5, 3)), (rows(4, 3), None, rows(3, 1)[:, 0]), (torch.zeros(3),)):
        with pytest.raises(UsageError) as caught:
            layer.update(*args)
        assert caught.value.code == "EQ-U221"
    for every in (1, -2):
        with pytest.raises(UsageError, match="no rows to fit"):
            LayerMoments(3, holdout_every=every)
    with pytest.raises(UsageError, match="at least one input"):
        LayerMoments(0)
    with pytest.raises(InternalError, match="widths 3 and 2"):
        layer.merge(LayerMoments(2))
