"""Twin uniform grids: one bit chooses between two uniform ranges, the others count steps.

Source: PTQ4ViT (Yuan et al., ECCV 2022, arXiv 2111.12293). Deviations: a value takes the range whose level
is nearer, where the released code adds the two ranges; and the ratio of the ranges is searched together with the step,
as the OPT-m of MPTQ-ViT describes, instead of fixing the upper end at 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgeq.quant.grids.base import (
    IntegerTable,
    TableGrid,
    largest_integer,
    nearest_codes,
    require_bits,
    require_finite,
    require_numbers,
    require_parameters,
)

GELU_FLOOR = 0.16997124
"""Magnitude of the least value of GELU."""

_SHARES = (1.0, 0.7, 0.4, 0.2)


@dataclass(frozen=True)
class TwinUniform(TableGrid):
    """For values from 0 up, such as attention: steps of `step` near 0 and of `step * 2^shift` beyond.

    Codes 0 to `2^(bits-1) - 1` count small steps, the rest large ones; both sums add after a shift of the second.

    Args:
        bits: Width of a code, range bit included.
        step: Small step, positive.
        shift: Ratio of the steps as a power of two, 0 to 30.
    """

    kind: ClassVar[str] = "twin"
    bits: int
    step: float
    shift: int

    def __post_init__(self) -> None:
        require_bits(self.kind, self.bits)
        require_parameters(self.kind, step=0 < self.step < np.inf, shift=0 <= self.shift <= 30)

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[TwinUniform]:
        """Shifts 0 to 19 with the upper end 1, the published form for softmax, and 0 to 9 with ends that fit `x`."""
        require_bits(cls.kind, bits)
        top = float(require_finite(x).amax())
        ends = [(1.0, 20), *((top * share, 10) for share in _SHARES if top > 0)]
        steps = (1 << (bits - 1)) - 1
        return [cls(bits, end / steps / 2.0**shift, shift) for end, shifts in ends for shift in range(shifts)]

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32; values below 0 take code 0."""
        return nearest_codes(require_numbers(x), self.levels())

    def levels(self) -> NDArray[np.float32]:
        """Small steps from 0, then large steps from 0."""
        counts = np.arange(1 << (self.bits - 1))
        return (np.concatenate([counts, counts * 2.0**self.shift]) * self.step).astype(np.float32)

    def integer_table(self, width: int = 16) -> IntegerTable:
        """Counts of small steps, exact where the largest fits; the large half is its count shifted by `shift`."""
        counts = np.arange(1 << (self.bits - 1), dtype=np.int64)
        values = np.concatenate([counts, counts << self.shift])
        if values[-1] > largest_integer(width):
            return super().integer_table(width)
        return IntegerTable(values.astype(np.int32), self.step, 0.0, width, exact=True)


@dataclass(frozen=True)
class TwinGelu(TableGrid):
    """For outputs of GELU: a sign bit, fixed fine steps below 0 and fitted steps above.

    Codes 0 to `2^(bits-1) - 1` count positive steps from 0, the rest negative steps from -1, as in two's complement.

    Args:
        bits: Width of a code, sign included.
        step: Step of the positive half.
    """

    kind: ClassVar[str] = "twin_gelu"
    bits: int
    step: float

    def __post_init__(self) -> None:
        require_bits(self.kind, self.bits)
        require_parameters(self.kind, step=0 < self.step < np.inf)

    @property
    def negative_step(self) -> float:
        """Step of the negative half, which ends at the least value of GELU."""
        return float(GELU_FLOOR / (1 << (self.bits - 1)))

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[TwinGelu]:
        """Positive ends from 1 % of the largest value to 120 % of it, the interval that the paper searches."""
        require_bits(cls.kind, bits)
        top = max(float(require_finite(x).amax()), GELU_FLOOR)
        return [cls(bits, top * share / ((1 << (bits - 1)) - 1)) for share in np.linspace(0.01, 1.2, 101).tolist()]

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32."""
        return nearest_codes(require_numbers(x), self.levels())

    def levels(self) -> NDArray[np.float32]:
        """Positive levels from 0, then negative ones from the one next to 0."""
        counts = np.arange(1 << (self.bits - 1))
        return np.concatenate([counts * self.step, -(counts + 1) * self.negative_step]).astype(np.float32)
