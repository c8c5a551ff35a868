"""Shift-uniform-log2: uniform codes of the logarithm of a shifted value.

Source: I&S-ViT (Zhong et al., arXiv 2311.10126), equation 14. `ShiftLog2` is the published form, which rounds the
exponent once more so that a kernel can shift; most of its codes then coincide (at most 12 levels differ at any width).
`ShiftLog2Table` leaves that rounding out and needs a table of `2^b` entries; it is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.quant.grids.base import (
    IntegerTable,
    TableGrid,
    largest_integer,
    require_bits,
    require_finite,
    require_numbers,
    require_parameters,
    rounded_table,
)

if TYPE_CHECKING:
    from typing_extensions import Self

SHIFTS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Published candidates for the shift."""


@dataclass(frozen=True)
class _ShiftLog2(TableGrid):
    """Uniform grid of `-log2(x + shift)`.

    Args:
        bits: Width of a code.
        shift: Added before the logarithm, positive.
        step: Step of the logarithm, positive.
        zero_point: Code whose logarithm is 0; may lie outside the codes.
    """

    kind: ClassVar[str] = ""
    bits: int
    shift: float
    step: float
    zero_point: int

    def __post_init__(self) -> None:
        require_bits(self.kind, self.bits)
        require_parameters(self.kind, shift=0 < self.shift < math.inf, step=0 < self.step < math.inf)

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[Self]:
        """One for each published shift, steps from the ends of the values."""
        require_bits(cls.kind, bits)
        return [cls(bits, *choice) for choice in _choices(x, bits)]

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32; 0 is the largest level."""
        logarithm = -torch.log2((require_numbers(x) + self.shift).clamp_min(0))
        codes = torch.round(logarithm / self.step) + self.zero_point
        return codes.clamp_(0, (1 << self.bits) - 1).to(torch.int32)

    def exponents(self) -> NDArray[np.float64]:
        """Exponent of each code."""
        codes = np.arange(1 << self.bits, dtype=np.float64)
        return -self.step * (codes - self.zero_point)

    def levels(self) -> NDArray[np.float32]:
        """Powers less the shift, descending."""
        return (2.0 ** self.exponents() - self.shift).astype(np.float32)

    def integer_table(self, width: int = 16) -> IntegerTable:
        """The powers; the shift is the offset."""
        table = rounded_table(2.0 ** self.exponents(), width)
        return IntegerTable(table.values, table.scale, -self.shift, width, exact=False)


def _choices(x: Tensor, bits: int) -> list[tuple[float, float, int]]:
    """Shift, step and zero point for each published shift, from the ends of the values."""
    low, high = (max(float(end), 0.0) for end in torch.aminmax(require_finite(x)))
    choices = []
    for shift in SHIFTS:
        least, most = -math.log2(high + shift), -math.log2(low + shift)
        step = max((most - least) / ((1 << bits) - 1), 2.0**-20)
        choices.append((shift, step, round(-least / step)))
    return choices


@dataclass(frozen=True)
class ShiftLog2(_ShiftLog2):
    """Published form: exponents are rounded to integers."""

    kind: ClassVar[str] = "sulq"

    def exponents(self) -> NDArray[np.float64]:
        """Integer exponent of each code."""
        exponents: NDArray[np.float64] = np.rint(super().exponents())
        return exponents

    def integer_table(self, width: int = 16) -> IntegerTable:
        """Powers of two, exact where the width holds the smallest."""
        exponents = self.exponents()
        top = min(int(exponents[0] - exponents[-1]), largest_integer(width).bit_length() - 1)
        scale = 2.0 ** (exponents[0] - top)
        values = np.rint(2.0**exponents / scale)
        exact = bool((values * scale == 2.0**exponents).all())
        return IntegerTable(values.astype(np.int32), float(scale), -self.shift, width, exact=exact)


@dataclass(frozen=True)
class ShiftLog2Table(_ShiftLog2):
    """Table form: exponents as they are."""

    kind: ClassVar[str] = "sulq_table"
