"""Small floating-point formats, for simulating hardware that has them: e2m1, e3m2, e4m3 and their like.

Source: OCP Microscaling Formats (MX) specification 1.0, section 5.3, and OCP 8-bit floating point specification 1.0. A
code is the bit pattern. Patterns that mean NaN or infinity are never produced, values beyond the largest saturate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.errors import unknown_name
from edgeq.quant.grids.base import TableGrid, require_bits, require_finite, require_numbers, require_parameters


@dataclass(frozen=True)
class Format:
    """Layout of a format.

    Args:
        exponent: Bits of the exponent.
        mantissa: Bits of the mantissa.
        reserved: Patterns of each sign, from the top, that mean NaN or infinity.
    """

    exponent: int
    mantissa: int
    reserved: int = 0

    @property
    def bits(self) -> int:
        """Width with the sign."""
        return 1 + self.exponent + self.mantissa

    def magnitudes(self) -> NDArray[np.float64]:
        """Magnitude of each pattern without sign, `(2^(bits-1),)`; reserved patterns repeat the largest finite one."""
        patterns = np.minimum(np.arange(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1 - self.reserved)
        exponent, mantissa = np.divmod(patterns, 1 << self.mantissa)
        bias = (1 << (self.exponent - 1)) - 1
        fraction = mantissa / (1 << self.mantissa) + (exponent > 0)  # exponent 0 holds the subnormal numbers
        return fraction * 2.0 ** (np.maximum(exponent, 1) - bias)


FORMATS: Mapping[str, Format] = {
    "e2m1": Format(2, 1),
    "e2m3": Format(2, 3),
    "e3m2": Format(3, 2),
    "e4m3": Format(4, 3, reserved=1),
    "e5m2": Format(5, 2, reserved=4),
}
"""Formats by name; each has a mantissa width of its own at its width."""


@dataclass(frozen=True)
class Minifloat(TableGrid):
    """`real = scale * format(code)`, rounded to the nearest, ties to even.

    Args:
        bits: Width of a code, sign included.
        mantissa: Bits of the mantissa; with the width it names one of `FORMATS`.
        scale: Positive.
    """

    kind: ClassVar[str] = "minifloat"
    bits: int
    mantissa: int
    scale: float

    def __post_init__(self) -> None:
        require_bits(self.kind, self.bits)
        known = any((f.bits, f.mantissa) == (self.bits, self.mantissa) for f in FORMATS.values())
        require_parameters(self.kind, mantissa=known, scale=0 < self.scale < np.inf)

    @property
    def format(self) -> Format:
        """The format of this width and mantissa."""
        return next(f for f in FORMATS.values() if (f.bits, f.mantissa) == (self.bits, self.mantissa))

    @classmethod
    def of(cls, name: str, scale: float) -> Minifloat:
        """The grid of a format by name.

        Raises:
            UsageError: Unknown format, or a scale that is not positive.
        """
        if name not in FORMATS:
            raise unknown_name("floating-point format", name, FORMATS, code="EQ-U202")
        return cls(FORMATS[name].bits, FORMATS[name].mantissa, scale)

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[Minifloat]:
        """Every format of that width, with scales from the one that reaches the largest value to an eighth of it."""
        top = float(require_finite(x).abs().amax()) or 1.0
        tops = (top * 2.0 ** (-np.arange(0, 25) / 8)).tolist()
        formats = [f for f in FORMATS.values() if f.bits == bits]
        require_parameters(cls.kind, bits=bool(formats))
        return [cls(bits, f.mantissa, end / float(f.magnitudes().max())) for f in formats for end in tops]

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32 bit patterns; a negative value that rounds to zero keeps its sign."""
        units = require_numbers(x) / self.scale
        layout = self.format
        finite = layout.magnitudes()[: (1 << (self.bits - 1)) - layout.reserved]
        middle = torch.from_numpy((finite[:-1] + finite[1:]) / 2).to(units)
        magnitude = units.abs().contiguous()
        below, above = torch.bucketize(magnitude, middle), torch.bucketize(magnitude, middle, right=True)
        code = torch.where(below % 2 == 0, below, above)  # they differ on ties only, and one of them is even
        sign = torch.signbit(units).to(torch.int32) << (self.bits - 1)
        return code.to(torch.int32) | sign

    def levels(self) -> NDArray[np.float32]:
        """The real of each bit pattern; reserved patterns repeat the largest."""
        magnitudes = self.format.magnitudes() * self.scale
        return np.concatenate([magnitudes, -magnitudes]).astype(np.float32)
