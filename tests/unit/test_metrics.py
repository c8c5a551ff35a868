"""Fidelity figures, including the degenerate samples that real data contains."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeq.errors import InternalError, ModelError
from edgeq.metrics import agreement, bootstrap_difference, bootstrap_totals, mean_score, sqnr_db, summarize, top1

ARRAYS = hnp.arrays(np.float32, st.integers(2, 30), elements=st.floats(-1e6, 1e6, width=32))


@given(ARRAYS)
def test_equal_is_infinite_also_when_constant(x: np.ndarray) -> None:
    assert sqnr_db(x, x.copy()) == math.inf


@given(ARRAYS, st.sampled_from([2.0**-10, 0.5, 8.0, 1024.0]))
def test_scale_does_not_matter(x: np.ndarray, factor: float) -> None:
    x = x.astype(np.float64)  # products of small float32 values would vanish
    noisy = x + 1
    assert sqnr_db(x * factor, noisy * factor) == pytest.approx(sqnr_db(x, noisy))


def test_known_values() -> None:
    x = np.array([-1.0, 1.0] * 50)
    assert sqnr_db(x, x + 0.1) == pytest.approx(20)
    assert sqnr_db(x + 1000, x + 1000.1) == pytest.approx(20)  # the offset is no signal
    assert sqnr_db(x.reshape(10, 10), 0 * x.reshape(10, 10)) == pytest.approx(0)
    assert sqnr_db(np.full(7, 0.1), np.full(7, 0.2)) == -math.inf
    assert sqnr_db([1.0, 2.0], [1.0, math.nan]) == -math.inf
    assert sqnr_db([1.0, 2.0], [1.0, math.inf]) == -math.inf
    assert sqnr_db(np.array([0.0, 1e-300]), np.array([1e200, 0.0])) == -math.inf


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ModelError) as caught:
        sqnr_db([math.nan, 1.0], [0.0, 1.0])
    assert caught.value.code == "EQ-M033"
    for pair in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(InternalError):
            sqnr_db(*pair)


def test_summaries() -> None:
    found = summarize([30.0, 10.0, 20.0, 10.0])
    assert (found.median, found.worst, found.worst_index, found.n) == (15, 10, 1, 4)
    assert summarize([math.inf, 20.0, math.inf]).median == math.inf
    assert summarize([math.inf, -math.inf]).median == -math.inf
    assert summarize([math.inf, 4.0]).median == 4
    broken = summarize([math.nan, 20.0, 30.0])
    assert (broken.median, broken.worst, broken.worst_index) == (20, -math.inf, 0)
    assert json.loads(json.dumps(broken.to_dict(), allow_nan=False))["worst"] is None
    with pytest.raises(InternalError):
        summarize([])


@given(st.lists(st.floats(-100, 100), min_size=1))
def test_summary_equals_numpy(values: list[float]) -> None:
    found = summarize(values)
    assert found.median == pytest.approx(float(np.median(values)))
    assert found.worst == min(values) == values[found.worst_index]


def test_top1_and_agreement() -> None:
    logits = np.array([[1, 2, 0], [5, 5, 1], [np.nan, 9, 1], [0, 0, 1]])
    assert top1(logits, [1, 0, 1, 2]) == 0.75
    assert agreement(logits, logits) == 0.75
    assert agreement(logits, -logits) == 0
    for wrong in ([1, 0], [[1], [0], [1], [2]]):
        with pytest.raises(InternalError):
            top1(logits, wrong)
    with pytest.raises(InternalError):
        agreement(logits, logits[:, :2])
    with pytest.raises(InternalError):
        top1(logits[0], [1])


def test_bootstrap_agrees_with_theory_and_plain_resampling() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, 1000).astype(float)
    test = np.where(rng.random(1000) < 0.05, 1 - base, base)
    low, high = bootstrap_difference(test, base, seed=1)
    spread = 1.96 * (test - base).std() / math.sqrt(1000)
    assert (low, high) == pytest.approx(((test - base).mean() - spread, (test - base).mean() + spread), abs=0.002)
    drawn = np.array([(test - base)[rng.integers(0, 1000, 1000)].mean() for _ in range(4000)])
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.002)


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-10, 10)), st.integers(0, 100))
def test_bootstrap_is_seeded_ordered_and_exact_for_constants(x: np.ndarray, seed: int) -> None:
    found = bootstrap_difference(x, np.zeros_like(x), seed=seed, resamples=200)
    assert found == bootstrap_difference(x, np.zeros_like(x), seed=seed, resamples=200)
    assert x.min() - 1e-9 <= found[0] <= found[1] <= x.max() + 1e-9
    assert bootstrap_difference(x, x, seed=seed, resamples=50) == (0, 0)


def test_bootstrap_of_many_different_values_is_cut_in_pieces() -> None:
    x = np.random.default_rng(0).normal(1, 1, 20_000)
    low, high = bootstrap_difference(x, np.zeros_like(x), seed=0, resamples=1000)
    assert low < x.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(20_000), rel=0.15)


@pytest.mark.parametrize("scores", [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]]), ([math.nan], [0.0])])
def test_bootstrap_refuses_what_is_not_paired(scores: tuple[list[float], list[float]]) -> None:
    with pytest.raises(InternalError) as caught:
        bootstrap_difference(*scores, seed=0)
    assert caught.value.code == "EQ-Z021"


def test_bootstrap_of_a_total_pairs_the_records_and_leaves_out_draws_without_a_score() -> None:
    def errors_per_word(records: Sequence[tuple[int, int]]) -> float:
        words = sum(r[1] for r in records)
        return 100 * sum(r[0] for r in records) / words if words else math.nan

    base = [(0, 5), (1, 4), (0, 0), (2, 9)] * 5
    worse = [(e + (w > 4), w) for e, w in base]
    low, high = bootstrap_totals(worse, base, errors_per_word, seed=3, resamples=300)
    assert 0 <= low < errors_per_word(worse) - errors_per_word(base) < high
    assert bootstrap_totals(base, base, errors_per_word, seed=3, resamples=50) == (0, 0)
    scores = [0.0, 100.0, 100.0, 0.0]
    assert bootstrap_totals(scores, scores[::-1], mean_score, seed=0) == bootstrap_difference(
        scores, scores[::-1], seed=0
    )
    for bad in ([], [(0, 0)]):
        with pytest.raises(InternalError):
            bootstrap_totals(bad, bad, errors_per_word, seed=0)
