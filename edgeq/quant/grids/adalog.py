"""AdaLog: a logarithmic grid whose base is searched, in the table form that integer hardware runs.

Source: AdaLog (Wu et al., ECCV 2024, arXiv 2407.12951), section 3.1. Deviations: the last code is zero, where the
released simulation has a level more than codes (`published=True` is that form, for comparison only, see
`edgeq.quant.grids.log`); and bases closer to 1 are searched too (numerators from 2, not from 10), without which nothing
is gained beyond 6 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.quant.grids.base import (
    IntegerTable,
    TableGrid,
    largest_integer,
    least,
    require_bits,
    require_finite,
    require_numbers,
    require_parameters,
    squared_error,
)
from edgeq.quant.grids.log import power_codes
from edgeq.quant.grids.twin import GELU_FLOOR

DENOMINATOR = 37
"""Denominator r of the base `2^(numerator / r)`: a prime, so that the fractions of the exponents are spread evenly."""

_NUMERATORS = (*range(2, 40), *range(40, 70, 2), *range(70, 110, 5))
_GELU_NUMERATORS = (2, 3, 4, 6, 8, *range(10, 60, 4))


@dataclass(frozen=True)
class AdaLog(TableGrid):
    """Levels `limit * 2^-T1[code] * T2[code]` and zero, with `code * numerator / 37` split in whole and fraction.

    T1 is the whole part; T2 is two to minus the fraction, an integer of `bits + 1` bits over `2^(bits + 1) - 2`.

    Args:
        bits: Width of a code.
        numerator: 37 gives base 2, 18 or 19 about sqrt 2.
        limit: Largest level: 1 for probabilities.
        published: The released form with one level too many.
    """

    kind: ClassVar[str] = "adalog"
    bits: int
    numerator: int
    limit: float = 1.0
    published: bool = False

    def __post_init__(self) -> None:
        require_bits(self.kind, self.bits)
        require_parameters(self.kind, numerator=1 <= self.numerator <= 1000, limit=0 < self.limit < math.inf)

    @property
    def powers(self) -> int:
        """Number of codes that stand for powers; the next code is zero."""
        return (1 << self.bits) - (0 if self.published else 1)

    @property
    def fraction_steps(self) -> int:
        """What T2 counts in: 1 is this many."""
        return (1 << (self.bits + 1)) - 2

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[AdaLog]:
        """Numerators from 2 to 105; the largest level stays 1."""
        require_finite(x)
        return [cls(bits, numerator) for numerator in _NUMERATORS]

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32; 0 is the largest level and the last code is zero."""
        return power_codes(x, self.limit, DENOMINATOR / self.numerator, self.powers)

    def tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shifts T1 and multipliers T2 in units of `1 / fraction_steps`, each `(powers,)`."""
        shifts, rest = np.divmod(np.arange(self.powers) * self.numerator, DENOMINATOR)
        multipliers = np.rint(2.0 ** (-rest / DENOMINATOR) * self.fraction_steps).astype(np.int64)
        return shifts.astype(np.int64), multipliers

    def levels(self) -> NDArray[np.float32]:
        """Falling levels, then zero."""
        shifts, multipliers = self.tables()
        levels = self.limit * multipliers / self.fraction_steps * 2.0 ** -shifts.astype(np.float64)
        return np.append(levels, 0.0).astype(np.float32)

    def integer_table(self, width: int = 16) -> IntegerTable:
        """`T2 << (top - T1)`: exact where the width holds the smallest level, otherwise rounded below a step."""
        shifts, multipliers = self.tables()
        room = (largest_integer(width) // self.fraction_steps).bit_length() - 1
        top = min(int(shifts[-1]), room)
        if top < 0:
            return super().integer_table(width)
        values = np.append(np.rint(multipliers * 2.0 ** (top - shifts.astype(np.float64))), 0)
        scale = self.limit / self.fraction_steps * 2.0**-top
        return IntegerTable(values.astype(np.int32), scale, 0.0, width, exact=top == int(shifts[-1]))


@dataclass(frozen=True)
class ShiftedAdaLog(TableGrid):
    """AdaLog of `x + 0.16997`, for outputs of GELU; the shift becomes part of the next layer's bias.

    The bias takes up `-0.16997 * sum_i W[o, i]` of the weights as they are after quantization.

    Args:
        bits: Width of a code.
        numerator: As in `AdaLog`.
        limit: Largest level of the shifted values.
    """

    kind: ClassVar[str] = "adalog_shifted"
    bits: int
    numerator: int
    limit: float

    def __post_init__(self) -> None:
        require_parameters(self.kind, limit=0 < self.limit < math.inf)
        self.inner  # noqa: B018  # checks the rest

    @property
    def inner(self) -> AdaLog:
        """The grid of the shifted values."""
        return AdaLog(self.bits, self.numerator, self.limit)

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[ShiftedAdaLog]:
        """Numerators times largest levels from an eighth of the largest value to all of it."""
        require_bits(cls.kind, bits)
        top = max(float(require_finite(x).amax()) + GELU_FLOOR, GELU_FLOOR)
        shares = 2.0 ** (-np.arange(0, 13) / 4)
        return [cls(bits, n, top * share) for share in shares.tolist() for n in _GELU_NUMERATORS]

    @classmethod
    def fit(cls, x: Tensor, bits: int) -> ShiftedAdaLog:
        """The least squared error of the candidates, then of every numerator and finer limits around the best."""

        def error(grid: ShiftedAdaLog) -> float:
            return squared_error(grid, x)

        best = least(cls.candidates(x, bits), error)
        near = range(max(1, best.numerator - 3), best.numerator + 4)
        best = least([cls(bits, n, best.limit) for n in near], error)
        return least([cls(bits, best.numerator, best.limit * 2.0 ** (k / 32)) for k in range(-4, 5)], error)

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32."""
        return self.inner.quantize(require_numbers(x) + GELU_FLOOR)

    def levels(self) -> NDArray[np.float32]:
        """Levels of the inner grid less the shift."""
        return (self.inner.levels().astype(np.float64) - GELU_FLOOR).astype(np.float32)

    def integer_table(self, width: int = 16) -> IntegerTable:
        """The inner table; the shift is its offset."""
        table = self.inner.integer_table(width)
        return IntegerTable(table.values, table.scale, -GELU_FLOOR, width, table.exact)

    def bias_correction(self, weight: Tensor) -> Tensor:
        """What the next layer's bias gains when it is fed the inner levels: `(O,)` for a quantized weight `(O, I)`."""
        return -GELU_FLOOR * weight.detach().to(torch.float64).sum(dim=1)
