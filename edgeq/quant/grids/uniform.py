"""The uniform grid behind the interface of the others, so that a search can compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.quant import uniform
from edgeq.quant.grids.base import (
    IntegerTable,
    TableGrid,
    largest_integer,
    require_bits,
    require_finite,
    require_numbers,
)
from edgeq.quant.ranges import choose_range
from edgeq.quant.statistics import TensorStatistics
from edgeq.spec import QParams, QuantSpec

_CLIPS = 2.0 ** (-np.arange(0, 41) / 6)


@dataclass(frozen=True)
class UniformGrid(TableGrid):
    """`real = scale * (code + qmin - zero_point)`, codes counted from 0.

    Args:
        bits: Width of a code.
        scale: Positive, float32 precision.
        zero_point: In the signed codes of `QParams`.
    """

    kind: ClassVar[str] = "uniform"
    bits: int
    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        require_bits(self.kind, self.bits)
        object.__setattr__(self, "scale", float(self.qparams.scale))

    @property
    def qparams(self) -> QParams:
        """The same grid as the plan knows it."""
        return QParams(QuantSpec(self.bits), np.array(self.scale, np.float32), np.array(self.zero_point, np.int32))

    @classmethod
    def from_range(cls, low: float, high: float, bits: int) -> UniformGrid:
        """The grid that covers `[low, high]`, as `edgeq.quant.qparams_from_range`."""
        require_bits(cls.kind, bits)
        grid = uniform.qparams_from_range(low, high, QuantSpec(bits))
        return cls(bits, float(grid.scale), int(grid.zero_point))

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[UniformGrid]:
        """The whole range and shares of it down to 1 %, both ends together."""
        low, high = (float(end) for end in torch.aminmax(require_finite(x)))
        return [cls.from_range(low * share, high * share, bits) for share in _CLIPS]

    @classmethod
    def fit(cls, x: Tensor, bits: int, observer: str = "mse") -> UniformGrid:
        """The grid of the range that a range estimator chooses.

        Args:
            x: Values of any shape.
            bits: Width of a code.
            observer: As in `QuantSpec`.

        Raises:
            DataError: `x` is empty or holds NaN or infinity.
            UsageError: Unknown observer or impossible bits.
        """
        require_bits(cls.kind, bits)
        statistics = TensorStatistics()
        statistics.update(require_finite(x))
        return cls.from_range(*choose_range(statistics, QuantSpec(bits, observer=observer)), bits)

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32 from 0."""
        qparams = self.qparams
        return uniform.quantize(require_numbers(x), qparams) - qparams.spec.qmin

    def levels(self) -> NDArray[np.float32]:
        """The `2^bits` evenly spaced levels."""
        qparams = self.qparams
        codes = torch.arange(1 << self.bits, dtype=torch.int32) + qparams.spec.qmin
        levels: NDArray[np.float32] = uniform.dequantize(codes, qparams).numpy()
        return levels

    def integer_table(self, width: int = 16) -> IntegerTable:
        """The codes less the zero point; exact. A kernel multiplies them directly and needs no table."""
        qparams = self.qparams
        values = np.arange(1 << self.bits, dtype=np.int32) + qparams.spec.qmin - int(qparams.zero_point)
        if np.abs(values).max() > largest_integer(width):
            return super().integer_table(width)
        return IntegerTable(values, self.scale, 0.0, width, exact=True)
