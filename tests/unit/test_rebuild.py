"""Spread between builds: the figures, and what is kept between calls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.rebuild import Variance

SCORES = st.lists(st.floats(0, 100), min_size=2, max_size=8)


def variance(shipped: float, *scores: float, higher_is_better: bool = True) -> Variance:
    return Variance("top1", "%", higher_is_better, 100, 80.0, shipped, dict(enumerate(scores, 1)), 0.1)


def test_figures_are_those_of_a_table() -> None:
    found = variance(80.0, 81.0, 79.0)
    assert found.deviation == pytest.approx(1.0)
    assert found.luck == pytest.approx(4.3027 * math.sqrt(2), abs=1e-3), "Student's t of two degrees of freedom"
    assert found.interval == pytest.approx((80 - 4.3027 * math.sqrt(4 / 3), 80 + 4.3027 * math.sqrt(4 / 3)), abs=1e-3)
    assert found.rank == 2
    assert found.to_dict()["rebuilds"] == [{"seed": 1, "score": 81.0}, {"seed": 2, "score": 79.0}]
    assert found.to_dict()["spread"] == [79.0, 81.0]


def test_the_best_error_is_the_lowest() -> None:
    assert variance(3.0, 4.0, 5.0, higher_is_better=False).rank == 1
    assert variance(3.0, 4.0, 5.0).rank == 3


@given(SCORES)
def test_luck_has_no_sign_and_no_place(scores: list[float]) -> None:
    found, moved = variance(*scores), variance(*(s + 1 for s in scores))
    assert found.luck >= 0
    assert found.luck == pytest.approx(moved.luck, abs=1e-6)
    low, high = found.interval
    assert low <= np.mean(scores) + 1e-9 and np.mean(scores) - 1e-9 <= high


@given(SCORES)
def test_equal_builds_leave_nothing_to_luck(scores: list[float]) -> None:
    assert variance(*[scores[0]] * len(scores)).luck == pytest.approx(0, abs=1e-9)
