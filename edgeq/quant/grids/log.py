"""Logarithmic grids with base 2 and sqrt 2: the integer kernel is a shift.

Sources: log2, FQ-ViT (Lin et al., IJCAI 2022, arXiv 2111.13824); log sqrt2, RepQ-ViT (Li et al., ICCV 2023, arXiv
2212.08254). Deviation: the released simulations use all `2^b` codes for powers and send what lies
below to zero besides, `2^b + 1` levels; here the last code is zero. `published=True` is the released form, for
comparison with published figures only: it has one level too many, so that `TableParams` refuses it.
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
    quantile,
    require_bits,
    require_finite,
    require_numbers,
    require_parameters,
)


def power_codes(x: Tensor, limit: float, per_octave: float, powers: int) -> Tensor:
    """`round(-log2(x / limit) * per_octave)` clipped at 0; what rounds beyond `powers - 1` takes the code `powers`.

    Args:
        x: Values of any shape; values of 0 and below take the code of zero.
        limit: The level of code 0.
        per_octave: Codes for a factor of two.
        powers: Number of codes that stand for powers.
    """
    exponent = torch.log2(require_numbers(x).clamp_min(0) / limit).mul_(-per_octave)
    return torch.round(exponent).clamp_(0, powers).to(torch.int32)


@dataclass(frozen=True)
class _PowerGrid(TableGrid):
    """Levels `limit * base^-code` and zero; the base is `2^(1 / per_octave)`.

    Args:
        bits: Width of a code.
        limit: Largest level, positive.
        published: The released form with one level too many.
    """

    kind: ClassVar[str] = ""
    per_octave: ClassVar[int] = 1
    bits: int
    limit: float = 1.0
    published: bool = False

    def __post_init__(self) -> None:
        require_bits(self.kind, self.bits)
        require_parameters(self.kind, limit=0 < self.limit < math.inf)

    @property
    def powers(self) -> int:
        """Number of codes that stand for powers; the next code is zero."""
        return (1 << self.bits) - (0 if self.published else 1)

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32; 0 is the largest level and the last code is zero."""
        return power_codes(x, self.limit, self.per_octave, self.powers)

    def levels(self) -> NDArray[np.float32]:
        """Falling powers, then zero."""
        codes = np.arange(self.powers)
        return np.append(self.limit * 2.0 ** (-codes / self.per_octave), 0.0).astype(np.float32)


def limits(x: Tensor) -> list[float]:
    """Candidates for the largest level: 1 for probabilities, the largest value, and RepQ-ViT's three quantiles of x."""
    x = require_finite(x)
    top = float(x.amax())
    ends = {top, *(quantile(x, share) for share in (0.999, 0.9999, 0.99999))}
    positive = {end for end in ends if end > 0}  # quantiles of values that are nearly all zero are not
    return sorted({1.0, *positive} if top <= 1 else positive, reverse=True)


@dataclass(frozen=True)
class Log2(_PowerGrid):
    """Powers of two: `limit * 2^-code`, and zero. Beyond 4 bits nothing is gained: the base is fixed."""

    kind: ClassVar[str] = "log2"

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[Log2]:
        """One for each largest level of `limits`."""
        return [cls(bits, limit) for limit in limits(x)]

    def integer_table(self, width: int = 16) -> IntegerTable:
        """`1 << (top - code)`; exact down to the last power that the width holds, zero below."""
        top = min(self.powers - 1, largest_integer(width).bit_length() - 1)
        codes = np.arange(self.powers)
        values = np.where(codes <= top, 1 << np.maximum(top - codes, 0), 0)
        # the power next to the last one is half a step: rounding to even sends it to 0, as the shift does
        return IntegerTable(
            np.append(values, 0).astype(np.int32), self.limit * 2.0**-top, 0.0, width, exact=top == self.powers - 1
        )


@dataclass(frozen=True)
class LogSqrt2(_PowerGrid):
    """Powers of the square root of two: `limit * 2^(-code / 2)`, and zero.

    A kernel shifts by `(code + 1) // 2` and multiplies the sum over odd codes by sqrt 2 once for each output.
    """

    kind: ClassVar[str] = "log_sqrt2"
    per_octave: ClassVar[int] = 2

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[LogSqrt2]:
        """One for each largest level of `limits`."""
        return [cls(bits, limit) for limit in limits(x)]
