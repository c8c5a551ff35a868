"""Tangent grids: levels that crowd where tan is flat.

Source: TanQ of DopQ-ViT (Yang et al., arXiv 2408.03291), of which we have the idea (a tangent mapping, precise near 0
and near 1) but not the formula. These two are our readings of it: `TanEnds`, dense at both ends, and `TanLevels`, dense
near 0. Measured on attention maps of a ViT-S by the error of P V, `TanEnds` is the better one, so that it is the
default. A form dense only near 1 is fitted best by a curvature of 0, which is the uniform grid.
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

from edgeq.quant.grids.base import TableGrid, require_bits, require_finite, require_numbers, require_parameters

if TYPE_CHECKING:
    from typing_extensions import Self

_ANGLES = (0.6, 0.8, 0.95, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.45, 1.5)
_SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3)


@dataclass(frozen=True)
class _Tangent(TableGrid):
    """A grid with an angle and an upper end.

    Args:
        bits: Width of a code.
        angle: Curvature a in (0, pi / 2); towards 0 the grid becomes uniform.
        limit: Largest level, positive; the least is 0.
    """

    kind: ClassVar[str] = ""
    bits: int
    angle: float
    limit: float

    def __post_init__(self) -> None:
        require_bits(self.kind, self.bits)
        require_parameters(self.kind, angle=0 < self.angle < math.pi / 2, limit=0 < self.limit < math.inf)

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[Self]:
        """Angles times largest levels from 30 % of the largest value to all of it."""
        require_bits(cls.kind, bits)
        return [cls(bits, angle, limit) for angle, limit in _choices(x)]

    @property
    def top(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1


def _choices(x: Tensor) -> list[tuple[float, float]]:
    """Angles and limits worth trying; zero values get a limit of 1."""
    top = float(require_finite(x).amax())
    return [(angle, (top if top > 0 else 1.0) * share) for share in _SHARES for angle in _ANGLES]


@dataclass(frozen=True)
class TanEnds(_Tangent):
    """Dense at both ends: `code = round(phi(x / limit) * top)`, `phi(t) = (tan(a (2 t - 1)) / tan a + 1) / 2`."""

    kind: ClassVar[str] = "tan"

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32."""
        share = (require_numbers(x) / self.limit).clamp(0, 1)
        mapped = torch.tan(self.angle * (2 * share - 1)) / math.tan(self.angle)
        return torch.round((mapped + 1) * (self.top / 2)).clamp_(0, self.top).to(torch.int32)

    def levels(self) -> NDArray[np.float32]:
        """`limit * (atan((2 code / top - 1) tan a) / a + 1) / 2`, ascending."""
        mapped = 2 * np.arange(self.top + 1) / self.top - 1
        return (self.limit * (np.arctan(mapped * math.tan(self.angle)) / self.angle + 1) / 2).astype(np.float32)


@dataclass(frozen=True)
class TanLevels(_Tangent):
    """Dense near 0: `real = limit * tan(a * code / top) / tan a`."""

    kind: ClassVar[str] = "tan_levels"

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32."""
        share = (require_numbers(x) / self.limit).clamp(0, 1)
        mapped = torch.atan(share * math.tan(self.angle)) / self.angle
        return torch.round(mapped * self.top).clamp_(0, self.top).to(torch.int32)

    def levels(self) -> NDArray[np.float32]:
        """The levels, ascending from 0."""
        mapped = np.tan(self.angle * np.arange(self.top + 1) / self.top) / math.tan(self.angle)
        return (self.limit * mapped).astype(np.float32)


TanQ = TanEnds
"""The default reading."""
