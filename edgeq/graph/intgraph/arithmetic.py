"""The integer arithmetic that the interpreter and the generated C share, bit for bit.

One rule turns accumulators into codes. With `a` the accumulator, `m` an int32 multiplier, `s` a shift of 33 to 62 and
`l` a left shift known beforehand::

    out = ((a << l) * m + 2^(s - 1)) >> s        (64 bits, shift towards minus infinity)

Because `s >= 33`, the low word of the product never matters: with `h = ((a << l) * m) >> 32` the same integer is
`(h + 2^(s - 33)) >> (s - 32)`, one high multiplication, an addition and a shift on any 32-bit core (and per lane on
MVE). Jacob et al. 2018 (arXiv:1712.05877, section 2.2) is the source of dyadic multipliers; rounding differs: one
rounding, halves up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import ModelError

Ints = NDArray[np.int64]

MIN_SHIFT, MAX_SHIFT = 33, 62
NORM_FRACTION = 15
"""Bits after the point of a normalized value, before its channel's multiplier."""

EXP_BITS = 8
EXP_TABLE: Ints = np.rint(65535.0 * 2.0 ** (-np.arange(1 << EXP_BITS) / (1 << EXP_BITS))).astype(np.int64)
"""`65535 * 2^(-i/256)`: negative powers of two between two octaves; the scale cancels in a softmax."""


@dataclass(frozen=True, eq=False)
class Dyadic:
    """Multipliers of the rule, one or one a channel.

    Args:
        multiplier: int32 values, `(n,)`.
        shift: `s` of each, `(n,)`.
        left: `l`, common to all.
    """

    multiplier: Ints
    shift: Ints
    left: int

    def __call__(self, accumulator: Ints) -> Ints:
        """Apply the rule; channels along the last axis."""
        return shift_round((accumulator << self.left) * self.multiplier, self.shift)

    @property
    def real(self) -> NDArray[np.float64]:
        """The factors that the rule multiplies by, `(n,)`."""
        return self.multiplier * 2.0 ** (self.left - self.shift)


def shift_round(value: Ints, shift: Ints | int) -> Ints:
    """`(value + 2^(shift - 1)) >> shift`: division by a power of two, halves up."""
    places: Ints = np.asarray(shift, np.int64)
    half: Ints = np.left_shift(np.int64(1), places - 1)
    result: Ints = (value + half) >> places
    return result


def dyadic(real: Any, bound: int, place: str) -> Dyadic:
    """The rule that multiplies accumulators by `real`.

    Args:
        real: Factors, a number or `(n,)`; any sign.
        bound: Largest magnitude of an accumulator.
        place: Layer, for the message.

    Raises:
        ModelError: EQ-M501 where an intermediate could leave its width.
    """
    factors = np.atleast_1d(np.asarray(real, np.float64))
    largest = float(np.abs(factors).max(initial=0.0))
    left = max(0, math.frexp(largest)[1] + 2) if largest > 0 else 0
    require_fits(max(1, bound) << left, 31, place, "a shifted accumulator")
    pairs = [_normalized(float(f), left) for f in factors]
    return Dyadic(np.array([p[0] for p in pairs], np.int64), np.array([p[1] for p in pairs], np.int64), left)


def _normalized(real: float, left: int) -> tuple[int, int]:
    """Multiplier of 31 bits and shift of one factor."""
    if real == 0.0:
        return 0, MIN_SHIFT
    fraction, exponent = math.frexp(math.ldexp(real, -left))
    multiplier, shift = round(math.ldexp(fraction, 31)), 31 - exponent
    if abs(multiplier) == 1 << 31:
        multiplier, shift = multiplier // 2, shift - 1
    if shift < MIN_SHIFT:  # the factor was rounded up to 1/4
        multiplier, shift = (1 << 31) - 1 if real > 0 else 1 - (1 << 31), MIN_SHIFT
    if shift > MAX_SHIFT:
        multiplier, shift = round(math.ldexp(multiplier, MAX_SHIFT - shift)), MAX_SHIFT
    return multiplier, shift


def common(reals: Any, bound: int, place: str) -> Dyadic:
    """Like `dyadic`, with one shift for all factors, whose products are summed before the shift.

    Raises:
        ModelError: EQ-M501 where an intermediate could leave its width.
    """
    factors = np.atleast_1d(np.asarray(reals, np.float64))
    widest = dyadic(float(np.abs(factors).max(initial=0.0)), bound, place)
    shift = int(widest.shift[0])
    multipliers = np.rint(factors * 2.0 ** (shift - widest.left)).astype(np.int64)
    multipliers = np.clip(multipliers, 1 - (1 << 31), (1 << 31) - 1)
    return Dyadic(multipliers, np.full(len(multipliers), shift, np.int64), widest.left)


def wide(real: float, bound: int, place: str) -> Dyadic:
    """Like `dyadic`, for accumulators that may need more than 32 bits: a multiplier of 29, any shift from 1.

    Raises:
        ModelError: EQ-M501 where the product could leave 64 bits.
    """
    shift = min(max(29 - math.frexp(real)[1], 1), MAX_SHIFT)
    multiplier = round(math.ldexp(real, shift))
    require_fits(abs(multiplier), 31, place, "a multiplier")
    largest = bound * abs(multiplier) + (1 << (shift - 1))
    require_fits(largest, 63, place, "a product")
    require_fits(largest >> shift, 31, place, "a result")
    return Dyadic(np.array([multiplier], np.int64), np.array([shift], np.int64), 0)


def require_fits(bound: int, bits: int, place: str, what: str) -> None:
    """Refuse a layer in which a value could need more than `bits` bits and a sign.

    Raises:
        ModelError: EQ-M501.
    """
    if bound >= 1 << bits:
        raise ModelError(
            f"{place}: {what} could reach {bound}, which needs more than {bits} bits and a sign",
            code="EQ-M501",
            place=place,
            hint="split the layer, or narrow what it reads with --bits",
        )


def leading_zeros(value: Ints, bits: int) -> Ints:
    """Zeros before the first one of non-negative values of `bits` bits."""
    result: Ints = np.full(value.shape, bits, np.int64)
    rest = value.astype(np.uint64)
    for step in (32, 16, 8, 4, 2, 1):
        big = rest >= (np.uint64(1) << np.uint64(step))
        result = np.where(big, result - step, result)
        rest = np.where(big, rest >> np.uint64(step), rest)
    return np.where(rest > 0, result - 1, result)


def square_root(value: Ints) -> Ints:
    """Floor of the square root of values below 2^32."""
    root = np.sqrt(value.astype(np.float64)).astype(np.int64)
    root = np.where(root * root > value, root - 1, root)
    return np.where((root + 1) * (root + 1) <= value, root + 1, root)
