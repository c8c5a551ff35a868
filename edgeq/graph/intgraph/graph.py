"""`IntGraph`: a network of integers with flat buffers and explicit sizes, which the interpreter runs and C is made of.

Tensors are flat, in C order; images are height x width x channels. Every operation names its sizes, so a reshape is no
operation. Codes stand for `scale * (code - zero_point)`; scales are for people, no operation reads one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import InternalError
from edgeq.graph.intgraph.arithmetic import Dyadic, Ints


@dataclass(frozen=True)
class IntTensor:
    """A buffer of codes.

    Args:
        name: Unique in the graph.
        shape: Sizes in memory order.
        scale: Real value of a step.
        zero_point: Code of zero.
        low: Lowest code that is written.
        high: Highest code that is written.
        wide: Two bytes a code, one otherwise.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    low: int
    high: int
    wide: bool

    def __post_init__(self) -> None:
        least, most = (-32768, 32767) if self.wide else (-128, 127)
        if not (least <= self.low <= self.high <= most and least <= self.zero_point <= most and self.scale > 0):
            raise InternalError(f"{self.name} has an impossible grid", code="EQ-Z500", place=self.name)
        if not self.shape or min(self.shape) < 1:
            raise InternalError(f"{self.name} has the shape {self.shape}", code="EQ-Z500", place=self.name)

    @property
    def size(self) -> int:
        """Number of codes."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the buffer."""
        return self.size * (2 if self.wide else 1)

    @property
    def dtype(self) -> type[np.int8] | type[np.int16]:
        """Type of a code."""
        return np.int16 if self.wide else np.int8

    @property
    def reach(self) -> int:
        """Largest magnitude of `code - zero_point`, whatever the buffer holds within the written codes."""
        return max(abs(self.low - self.zero_point), abs(self.high - self.zero_point))


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a layer, ready for int32 accumulation.

    Args:
        codes: int8 values `(outputs, inner)`; the inner axis of a convolution is kernel row, kernel column, channel.
        bias: int32 values `(outputs,)`, the input's zero point folded in.
        scaling: Accumulator to code, per output.
        bits: 4 where two codes share a byte, else 8.
    """

    codes: Ints
    bias: Ints
    scaling: Dyadic
    bits: int

    @property
    def bytes(self) -> int:
        """Size in flash, without padding: codes, bias, multiplier and shift."""
        return -(-self.codes.size * self.bits // 8) + 9 * len(self.bias)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or a pooling over an image `(height, width, channels)`.

    `padding` is border above and left, and as much below and right, where `extra` rows and columns are added.
    """

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    extra: tuple[int, int] = (0, 0)

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        held = (self.height + self.extra[0], self.width + self.extra[1])
        sizes = zip(held, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)
        return rows, columns


@dataclass(frozen=True, eq=False)
class Op:
    """An operation: its name for people, what it reads, what it writes."""

    name: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, eq=False)
class Conv(Op):
    """Convolution; the border holds the zero point."""

    window: Window
    weights: Weights


@dataclass(frozen=True, eq=False)
class Depthwise(Op):
    """Convolution of each channel with its own kernel; codes `(kernel area, channels)`."""

    window: Window
    weights: Weights


@dataclass(frozen=True, eq=False)
class FullyConnected(Op):
    """Rows times the transposed weights."""

    rows: int
    weights: Weights


@dataclass(frozen=True, eq=False)
class MatMul(Op):
    """`(batch, rows, inner)` times the transpose of `(batch, columns, inner)`."""

    batch: int
    rows: int
    inner: int
    columns: int
    scaling: Dyadic


@dataclass(frozen=True, eq=False)
class Requantize(Op):
    """Codes gathered by strides and moved to the output's grid.

    Args:
        dims: Sizes of the result, outermost first, at most five.
        strides: Steps in the input.
        offset: First code in the input.
        scaling: Factor, or one for each index of the last axis; None copies codes.
        by_row: The factors are those of the indices of the axis before the last.
    """

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    scaling: Dyadic | None
    by_row: bool = False


@dataclass(frozen=True, eq=False)
class Table(Op):
    """A function of one code: 256 results, or 513 points `128` codes apart that are interpolated.

    Args:
        values: The results, or the points in units of `2^-fraction` codes.
        fraction: See `values`; 0 for a table of results.
    """

    values: Ints
    fraction: int


@dataclass(frozen=True, eq=False)
class Add(Op):
    """Weighted sum; the second operand repeats where it is smaller."""

    scaling: Dyadic


@dataclass(frozen=True, eq=False)
class Mul(Op):
    """Product; the second operand repeats where it is smaller."""

    scaling: Dyadic


@dataclass(frozen=True, eq=False)
class Softmax(Op):
    """Softmax of rows: powers of two from a table, one division a row.

    Args:
        rows: How many.
        length: Codes in a row.
        slope: Factor from codes to 256ths of an octave, times `2^slope_shift`.
        slope_shift: See `slope`.
        gain: Multiplier of 31 bits for the reciprocal of the output's step.
        left: Left shift of powers before the multiplication.
        shift: Shift of the rule for a sum without leading zeros; each of them lowers it by one.
    """

    rows: int
    length: int
    slope: int
    slope_shift: int
    gain: int
    left: int
    shift: int


@dataclass(frozen=True, eq=False)
class Norm(Op):
    """LayerNorm, or RMSNorm where it is not centred, of rows: an integer square root and one division a row.

    Args:
        rows: How many.
        length: Codes in a row.
        centred: Whether the mean is subtracted.
        epsilon: `eps * length^2 / scale^2`.
        gain: Multiplier of a normalized value, one or one a channel; one shift.
        offset: Added to the high word of the product, with the rounding; as many as `gain`.
    """

    rows: int
    length: int
    centred: bool
    epsilon: int
    gain: Dyadic
    offset: Ints


@dataclass(frozen=True, eq=False)
class Mean(Op):
    """Mean over the middle of three axes `(outer, reduced, inner)`."""

    outer: int
    reduced: int
    inner: int
    scaling: Dyadic


@dataclass(frozen=True, eq=False)
class AveragePool(Op):
    """Mean of each window; no border."""

    window: Window
    scaling: Dyadic


@dataclass(frozen=True, eq=False)
class MaxPool(Op):
    """Largest code of each window; the border never wins."""

    window: Window


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Inputs `(outer, size)` side by side.

    Args:
        outer: Rows.
        sizes: Codes that each input contributes to a row.
    """

    outer: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """An input or output of the network.

    Args:
        tensor: Its buffer.
        shape: Shape that the float network has there.
        order: Axes of that shape in memory order: an image `(1, C, H, W)` is held as `(0, 2, 3, 1)`.
    """

    tensor: str
    shape: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Patches:
    """The first operations of a network run patch by patch (`edgeq.graph.intgraph.patches`); no integer changes.

    Args:
        ops: How many operations.
        count: How many patches.
    """

    ops: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.ops < 0 or self.count < 1 or (self.ops == 0) != (self.count == 1):
            raise InternalError(f"{self.count} patches of {self.ops} operations", code="EQ-Z500", place="patches")


@dataclass(frozen=True)
class IntGraph:
    """A network of integers.

    Args:
        name: Of the model.
        ops: In execution order.
        tensors: By name: inputs, constants and results.
        constants: Codes of the tensors that are constant, flat.
        inputs: In the order of the float network.
        outputs: Likewise.
        patches: Which operations run in patches.
    """

    name: str
    ops: tuple[Op, ...]
    tensors: Mapping[str, IntTensor]
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    patches: Patches = Patches()

    def __post_init__(self) -> None:
        ready = {port.tensor for port in self.inputs} | set(self.constants)
        for op in self.ops:
            missing = [t for t in op.inputs if t not in ready]
            if missing or op.output not in self.tensors or op.output in ready:
                raise InternalError(f"{op.name} cannot run here: {missing or op.output}", code="EQ-Z500", place=op.name)
            ready.add(op.output)
        lost = [p.tensor for p in self.outputs if p.tensor not in ready]
        if lost or not self.outputs or not self.inputs:
            raise InternalError(f"{self.name} has no way to its outputs {lost}", code="EQ-Z500", place=self.name)
        if self.patches.ops > len(self.ops):
            raise InternalError(f"{self.name} has fewer operations than its patches", code="EQ-Z500", place=self.name)
        for name, codes in self.constants.items():
            tensor = self.tensors[name]
            if codes.size != tensor.size or codes.min() < tensor.low or codes.max() > tensor.high:
                raise InternalError(f"constant {name} is not on its grid", code="EQ-Z500", place=name)
