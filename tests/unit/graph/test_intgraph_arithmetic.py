"""The one rounding rule, integer roots and counts, against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.graph.intgraph.arithmetic import EXP_TABLE, common, dyadic, leading_zeros, square_root

REALS = st.floats(2.0**-30, 2.0**10)


@given(real=REALS, sign=st.sampled_from([-1, 1]), value=st.integers(-(1 << 17), 1 << 17))
def test_dyadic_is_the_product_rounded_once(real: float, sign: int, value: int) -> None:
    rule = dyadic(sign * real, 1 << 17, "layer")
    got = int(rule(np.array([value]))[0])
    m, s, left = int(rule.multiplier[0]), int(rule.shift[0]), rule.left
    exact = Fraction(value) * (1 << left) * m / (1 << s)
    assert got == math.floor(exact + Fraction(1, 2))
    assert abs(float(exact) - value * sign * real) <= abs(value * real) * 2.0**-29 + 2.0**-20


@given(real=REALS, value=st.integers(-(1 << 17), 1 << 17))
def test_the_low_word_of_the_product_never_matters(real: float, value: int) -> None:
    rule = dyadic(real, 1 << 17, "layer")
    m, s, shifted = int(rule.multiplier[0]), int(rule.shift[0]), value << rule.left
    assert 33 <= s <= 62 and abs(m) < 1 << 31 and abs(shifted) < 1 << 31
    high = (shifted * m) >> 32
    assert (high + (1 << (s - 33))) >> (s - 32) == int(rule(np.array([value]))[0])


def test_a_factor_just_below_a_quarter_keeps_its_shift() -> None:
    rule = dyadic(np.nextafter(0.25, 0), 100, "layer")
    assert int(rule.shift[0]) >= 33 and int(rule.multiplier[0]) < 1 << 31
    assert int(dyadic(0.0, 100, "layer")(np.array([100]))[0]) == 0


def test_a_factor_that_would_overflow_names_the_layer() -> None:
    with pytest.raises(ModelError, match="blocks_0_fc1") as refused:
        dyadic(1000.0, 1 << 24, "blocks_0_fc1")
    assert refused.value.code == "EQ-M501"


@given(first=REALS, second=REALS)
def test_common_factors_share_a_shift(first: float, second: float) -> None:
    rule = common([first, -second], 1 << 16, "layer")
    assert len(set(rule.shift.tolist())) == 1
    assert np.allclose(rule.real, [first, -second], atol=max(first, second) * 2.0**-29)


@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1))
def test_square_root_is_the_floor(values: list[int]) -> None:
    assert square_root(np.array(values, np.int64)).tolist() == [math.isqrt(v) for v in values]


@given(st.lists(st.integers(1, (1 << 62) - 1), min_size=1))
def test_leading_zeros(values: list[int]) -> None:
    assert leading_zeros(np.array(values, np.int64), 64).tolist() == [64 - v.bit_length() for v in values]


def test_table_of_powers_is_one_octave() -> None:
    assert len(EXP_TABLE) == 256 and EXP_TABLE[0] == 65535 and EXP_TABLE[-1] > 32767
