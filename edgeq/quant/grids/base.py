"""What every grid can do, and the maths that all of them share: a code is an index into a table of levels.

A quantizer with b bits has at most `2^b` codes, the one for zero included. Several published simulations of logarithmic
quantizers use all `2^b` codes and then send the tail to zero by a mask; what they report cannot be stored in b bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.errors import DataError, UsageError
from edgeq.spec import TableParams

MAX_BITS = 8


@dataclass(frozen=True, eq=False)
class IntegerTable:
    """Levels as integers, for a kernel that looks codes up and multiplies: `real = scale * values[code] + offset`.

    Args:
        values: int32 `(n,)`, each within a signed integer of `width` bits.
        scale: Positive; of a grid of powers of two (`log2`, `sulq`) a power of two times its limit, so that it is a
            shift.
        offset: Added to every level. It leaves the inner loop: `sum_j V_j * offset` is one constant per output column.
        width: Bits of a value, sign included.
        exact: No level was rounded; otherwise each is at most `scale / 2` away.
    """

    values: NDArray[np.int32]
    scale: float
    offset: float
    width: int
    exact: bool

    def reals(self) -> NDArray[np.float64]:
        """The levels that the integers stand for, `(n,)`."""
        return self.values.astype(np.float64) * self.scale + self.offset


class Grid(Protocol):
    """A quantizer with its parameters fixed; stateless, a code is an index into `levels()`."""

    kind: ClassVar[str]

    @property
    def bits(self) -> int:
        """Width of a code."""

    @classmethod
    def candidates(cls, x: Tensor, bits: int) -> Sequence[Grid]:
        """Grids worth trying on values `x` of any shape; whoever asks applies the error measure that matters."""

    @classmethod
    def fit(cls, x: Tensor, bits: int) -> Grid:
        """The grid with the least squared error on `x`."""

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32, same shape; values beyond the ends saturate, NaN is refused."""

    def dequantize(self, codes: Tensor) -> Tensor:
        """Reals of `codes`, float32, same shape."""

    def levels(self) -> NDArray[np.float32]:
        """The real of each code, float32 `(n,)` with n at most `2^bits`."""

    def integer_table(self, width: int = 16) -> IntegerTable:
        """The levels as integers of `width` bits."""

    def parameters(self) -> dict[str, float]:
        """What `from_parameters` needs besides the bits."""


G = TypeVar("G", bound="TableGrid")


class TableGrid:
    """Base of the grids: everything that follows from the levels. Subclasses are frozen dataclasses of numbers."""

    kind: ClassVar[str]
    bits: int

    @classmethod
    def candidates(cls: type[G], x: Tensor, bits: int) -> Sequence[G]:
        """Grids worth trying on values `x` of any shape."""
        raise NotImplementedError

    @classmethod
    def fit(cls: type[G], x: Tensor, bits: int) -> G:
        """The candidate with the least squared error on `x`; the first of equals.

        Raises:
            DataError: `x` is empty or holds NaN or infinity.
            UsageError: Bits that the grid does not have.
        """
        return least(cls.candidates(require_finite(x), bits), lambda grid: squared_error(grid, x))

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int32, same shape."""
        raise NotImplementedError

    def levels(self) -> NDArray[np.float32]:
        """The real of each code, float32 `(n,)`."""
        raise NotImplementedError

    def dequantize(self, codes: Tensor) -> Tensor:
        """Reals of `codes`, float32, same shape.

        Raises:
            UsageError: A code lies outside the table.
        """
        levels = torch.from_numpy(self.levels())
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < len(levels):
            raise UsageError(
                f"codes {int(codes.min())} to {int(codes.max())} do not index {len(levels)} levels",
                code="EQ-U204",
                hint="dequantize with the grid that made the codes",
            )
        return levels.to(codes.device)[codes.long()]

    def integer_table(self, width: int = 16) -> IntegerTable:
        """The levels rounded to signed integers of `width` bits, error at most half of the table's scale."""
        return rounded_table(self.levels().astype(np.float64), width)

    def parameters(self) -> dict[str, float]:
        """The numbers that make this grid, besides its bits."""
        return {f.name: float(getattr(self, f.name)) for f in fields(self) if f.name != "bits"}  # type: ignore[arg-type]

    @classmethod
    def from_parameters(cls: type[G], bits: int, parameters: Mapping[str, float]) -> G:
        """Inverse of `parameters`.

        Raises:
            UsageError: A parameter is missing, unknown or out of bounds.
        """
        casts: dict[str, Callable[[float], Any]] = {"int": int, "bool": bool, "float": float}
        wanted = {f.name: casts[str(f.type)] for f in fields(cls) if f.name != "bits"}  # type: ignore[arg-type]
        if wanted.keys() != parameters.keys():
            raise UsageError(
                f"{cls.kind} takes {', '.join(wanted)}, not {', '.join(parameters) or 'nothing'}", code="EQ-U201"
            )
        return cls(bits=bits, **{k: cast(parameters[k]) for k, cast in wanted.items()})  # type: ignore[call-arg]


def table_params(grids: Sequence[Grid]) -> TableParams:
    """The plan's form of one grid for the tensor, or of one for each head.

    Raises:
        UsageError: The grids are of different kinds or widths, there are none, or one has more levels than codes.
    """
    if len({(g.kind, g.bits) for g in grids}) != 1:
        raise UsageError(
            f"one tensor cannot be on grids {sorted({(g.kind, g.bits) for g in grids})}",
            code="EQ-U203",
            hint="heads may differ in parameters, not in kind and bits",
        )
    if len(grids) == 1:
        return TableParams(grids[0].kind, grids[0].bits, grids[0].parameters(), grids[0].levels())
    names = grids[0].parameters()
    parameters = {name: tuple(g.parameters()[name] for g in grids) for name in names}
    return TableParams(grids[0].kind, grids[0].bits, parameters, np.stack([g.levels() for g in grids]))


def rounded_table(levels: NDArray[np.float64], width: int) -> IntegerTable:
    """Levels of any kind in steps of the largest one over the largest integer.

    Raises:
        UsageError: Fewer than 2 or more than 31 bits.
    """
    scale = max(float(np.abs(levels).max()) / largest_integer(width), 2.0**-126)
    return IntegerTable(np.rint(levels / scale).astype(np.int32), scale, 0.0, width, exact=False)


def largest_integer(width: int) -> int:
    """`2^(width - 1) - 1`.

    Raises:
        UsageError: Fewer than 2 or more than 31 bits.
    """
    if not 2 <= width <= 31:
        raise UsageError(f"a table of integers has 2 to 31 bits, not {width}", code="EQ-U201")
    return (1 << (width - 1)) - 1


def require_bits(kind: str, bits: int, least_bits: int = 2) -> None:
    """Refuse widths that a table of levels does not have.

    Raises:
        UsageError: Fewer than `least_bits` or more than 8 bits.
    """
    if not least_bits <= bits <= MAX_BITS:
        raise UsageError(f"{kind} has {least_bits} to {MAX_BITS} bits, not {bits}", code="EQ-U201")


def require_parameters(kind: str, **checks: bool) -> None:
    """Refuse parameters whose check failed.

    Raises:
        UsageError: Naming the first of them.
    """
    for name, passed in checks.items():
        if not passed:
            raise UsageError(f"{kind}: {name} is out of bounds", code="EQ-U201", hint="fit the grid to values")


def require_finite(x: Tensor) -> Tensor:
    """`x` as float32, detached.

    Raises:
        DataError: It is empty or holds NaN or infinity.
    """
    x = x.detach().to(torch.float32)
    if x.numel() == 0 or not bool(torch.isfinite(x).all()):
        what = "they hold NaN or infinity" if x.numel() else "there are none"
        raise DataError(
            f"cannot fit a grid to these values: {what}",
            code="EQ-D200",
            hint="check the calibration samples and the float model",
        )
    return x


def require_numbers(x: Tensor) -> Tensor:
    """`x` as float32, detached.

    Raises:
        DataError: It holds NaN, which has no code.
    """
    x = x.detach().to(torch.float32)
    if bool(torch.isnan(x).any()):
        raise DataError("NaN has no code", code="EQ-D200", hint="check the calibration samples and the float model")
    return x


def squared_error(grid: Grid, x: Tensor) -> float:
    """Sum over all values of the squared quantization error, in double."""
    error = grid.dequantize(grid.quantize(x)) - x
    return float(error.square_().sum(dtype=torch.float64))


def least(candidates: Sequence[G], error: Callable[[G], float]) -> G:
    """The candidate with the smallest error, the first of equals."""
    errors = [error(candidate) for candidate in candidates]
    return candidates[min(range(len(errors)), key=errors.__getitem__)]


def nearest_codes(x: Tensor, levels: NDArray[np.float32]) -> Tensor:
    """The code whose level is nearest to each value; ties go to the lower level, equal levels to the first code."""
    ascending, first = np.unique(levels, return_index=True)
    middle = torch.from_numpy((ascending[:-1].astype(np.float64) + ascending[1:]) / 2).to(torch.float32)
    rank = torch.bucketize(x.contiguous(), middle.to(x.device))
    return torch.from_numpy(first.astype(np.int32)).to(x.device)[rank]


def quantile(x: Tensor, share: float) -> float:
    """The value below which `share` of `x` lies, the lower of two neighbours; any number of values."""
    flat = x.reshape(-1)
    return float(flat.kthvalue(max(1, math.ceil(share * flat.numel()))).values)
