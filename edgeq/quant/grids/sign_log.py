"""LogNP: a grid that is uniform near 0 and logarithmic beyond, for activations with a few channels of large values.

Source: the activation polishing of QuartDepth (Shen et al., arXiv 2503.16709), of which we have the mapping and the
choice of its parameter at second hand. There it is a transform before a uniform quantizer and its inverse behind it;
both together are a table of levels, which is what a kernel can look up.
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
    TableGrid,
    quantile,
    require_bits,
    require_finite,
    require_numbers,
    require_parameters,
)

if TYPE_CHECKING:
    from typing_extensions import Self

KNEE = 0.95
"""Quantile of the magnitudes that the paper takes as the parameter."""

_QUANTILES = (KNEE, 0.25, 0.5, 0.75, 0.99)
_SHARES = (1.0, 0.8, 0.6)


@dataclass(frozen=True)
class SignLog(TableGrid):
    """`code = round(phi(x) / step) + zero`, `phi(x) = sign(x) log2(1 + |x| / knee)`.

    Args:
        bits: Width of a code.
        knee: Magnitude a at which the logarithm takes over; towards infinity the grid becomes uniform.
        step: Of the uniform grid that phi(x) is on.
        zero: Code of 0.
    """

    kind: ClassVar[str] = "sign_log"
    bits: int
    knee: float
    step: float
    zero: int

    def __post_init__(self) -> None:
        require_bits(self.kind, self.bits)
        require_parameters(
            self.kind,
            knee=0 < self.knee < math.inf,
            step=0 < self.step * self.top < 120,  # 2^120 times the knee is still a float
            zero=0 <= self.zero <= self.top,
        )

    @property
    def top(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[Self]:
        """Knees at quantiles of the magnitudes, the paper's first, each with the whole range and parts of it."""
        require_bits(cls.kind, bits)
        return [cls.polished(x, bits, q, share) for q in _QUANTILES for share in _SHARES]

    @classmethod
    def polished(cls, x: Tensor, bits: int, knee: float = KNEE, share: float = 1.0) -> Self:
        """The paper's grid for the values of one channel.

        Args:
            x: Values of any shape.
            bits: Width of a code.
            knee: Quantile of the magnitudes that becomes the parameter.
            share: Of the range of phi that is covered; the paper's is all of it.
        """
        require_bits(cls.kind, bits)
        values = require_finite(x)
        least, most = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        largest = max(-least, most) or 1.0
        # A channel that is 0 nearly everywhere has a quantile of 0, and phi no scale.
        offset = max(quantile(values.abs(), knee), largest * 2.0**-16, 2.0**-100)
        low, high = (share * math.copysign(math.log2(1 + abs(v) / offset), v) for v in (least, most))
        top = (1 << bits) - 1
        step = max((high - low) / top, 2.0**-20)
        return cls(bits, offset, step, min(top, max(0, round(-low / step))))

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32."""
        values = require_numbers(x)
        mapped = torch.sign(values) * torch.log2(1 + values.abs() / self.knee)
        return (torch.round(mapped / self.step) + self.zero).clamp_(0, self.top).to(torch.int32)

    def levels(self) -> NDArray[np.float32]:
        """`sign(p) knee (2^|p| - 1)` at `p = (code - zero) step`, ascending."""
        mapped = (np.arange(self.top + 1) - self.zero) * self.step
        levels = np.sign(mapped) * self.knee * np.expm1(np.abs(mapped) * math.log(2))
        return np.asarray(levels, dtype=np.float32)
