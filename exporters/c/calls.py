"""One operation as C: its constant arrays, its parameters, its call, and the kernels it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.graph.intgraph.arithmetic import EXP_TABLE, Dyadic
from edgeq.graph.intgraph.graph import (
    Add,
    AveragePool,
    Concat,
    Conv,
    Depthwise,
    FullyConnected,
    IntGraph,
    IntTensor,
    MatMul,
    MaxPool,
    Mean,
    Mul,
    Norm,
    Op,
    Requantize,
    Softmax,
    Table,
    Weights,
    Window,
)
from edgeq.graph.intgraph.memory import ArenaPlan, padded_inner


@dataclass(frozen=True, eq=False)
class Array:
    """A constant in flash."""

    name: str
    type: str
    values: NDArray[Any]

    @property
    def bytes(self) -> int:
        """Size in flash."""
        width = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4}
        return width[self.type] * self.values.size


@dataclass(frozen=True, eq=False)
class Call:
    """An operation as C.

    Args:
        op: The operation.
        kernels: Templates it needs, in the order of `TEMPLATES`.
        arrays: Its constants.
        lines: Parameters and call, without indentation.
    """

    op: Op
    kernels: tuple[str, ...]
    arrays: tuple[Array, ...]
    lines: tuple[str, ...]


TEMPLATES = (
    *("zeros", "window", "layer", "average", "vector", "simd", "gemm", "gemm4", "patch", "conv", "conv4"),
    *("fully_connected", "fully_connected4", "matmul", "depthwise", "requantize", "table", "interpolate", "add", "mul"),
    *("softmax", "norm", "mean", "average_pool", "max_pool", "concat"),
)
"""Kernels in the order in which they are written; each may use those before it."""

_GEMM = ("layer", "vector", "simd")


class Writer:
    """Writes the calls of a network.

    Args:
        graph: The network.
        arena: Where its buffers lie.
        prefix: Of every name with external linkage.
    """

    def __init__(self, graph: IntGraph, arena: ArenaPlan, prefix: str) -> None:
        self.graph, self.arena, self.prefix = graph, arena, prefix
        self._ports = {port.tensor: f"input{i}" for i, port in enumerate(graph.inputs)}
        self._ports.update({port.tensor: f"output{i}" for i, port in enumerate(graph.outputs)})
        self._constants = {name: f"{prefix}_constant{i}" for i, name in enumerate(graph.constants)}

    def constants(self) -> list[Array]:
        """The tensors that are constant."""
        tensors = self.graph.tensors
        types = {name: "int16_t" if tensors[name].wide else "int8_t" for name in self._constants}
        return [Array(c_name, types[name], self.graph.constants[name]) for name, c_name in self._constants.items()]

    def call_of(self, index: int, op: Op) -> Call:
        """An operation."""
        return _WRITERS[type(op)](self, index, op)

    def amount(self, whole: int) -> str:
        """A number of codes, or of rows of them, of the result that is written."""
        return str(whole)

    def tensor(self, name: str) -> IntTensor:
        """A tensor of the graph."""
        return self.graph.tensors[name]

    def at(self, name: str, cast: str = "") -> str:
        """A buffer as a C expression."""
        if name in self._ports or name in self._constants:
            return f"{cast}{self._ports.get(name) or self._constants[name]}"
        return f"{cast}(arena + {self.arena.offsets[name]})"

    def bytes_at(self, name: str) -> str:
        """A buffer of single bytes that is read."""
        return self.at(name, "(const int8_t *)")

    def scratch(self, index: int) -> str:
        """Scratch of an operation."""
        return f"arena + {self.arena.offsets[f'scratch:{index}']}"

    def name(self, index: int, what: str) -> str:
        """Name of a constant of an operation."""
        return f"{self.prefix}_{what}{index}"

    def grid(self, name: str) -> str:
        """The grid of a result as an initializer."""
        t = self.tensor(name)
        return f"{{{t.zero_point}, {t.low}, {t.high}, {int(t.wide)}}}"

    def scaling(self, index: int, scaling: Dyadic, stepping: bool = True) -> tuple[str, tuple[Array, ...]]:
        """Multipliers as an initializer, and their arrays."""
        multiplier, shift = self.name(index, "multiplier"), self.name(index, "shift")
        arrays = (Array(multiplier, "int32_t", scaling.multiplier), Array(shift, "uint8_t", scaling.shift))
        return f"{{{multiplier}, {shift}, {scaling.left}, {int(stepping and len(scaling.multiplier) > 1)}}}", arrays

    def parameters(self, kind: str, index: int, values: Iterable[object]) -> str:
        """Declaration of the parameters of an operation."""
        inside = ", ".join(str(v) for v in values)
        return f"static const {self.prefix}_{kind} {kind}{index} = {{{inside}}};"

    def call(self, kernel: str, *arguments: object) -> str:
        """Call of a kernel."""
        return f"{self.prefix}_{kernel}({', '.join(str(a) for a in arguments)});"


def _window(window: Window) -> tuple[object, ...]:
    return (
        *(window.height, window.width, window.channels, *window.output),
        *(*window.kernel, *window.stride, *window.padding, *window.dilation),
    )


def packed(weights: Weights) -> NDArray[np.int64]:
    """Codes as they lie in flash: 4-bit ones plus 8, two a byte, the first in the low half, rows padded to 8 codes."""
    if weights.bits == 8:
        return weights.codes
    rows, inner = weights.codes.shape
    padded = np.full((rows, padded_inner(inner, 4)), 8, np.int64)
    padded[:, :inner] = weights.codes + 8
    result: NDArray[np.int64] = padded[:, 0::2] | padded[:, 1::2] << 4
    return result


def _layer(writer: Writer, index: int, op: Conv | Depthwise | FullyConnected) -> tuple[str, tuple[Array, ...]]:
    weights = op.weights
    scaling, arrays = writer.scaling(index, weights.scaling)
    codes, bias = writer.name(index, "weight"), writer.name(index, "bias")
    depthwise = isinstance(op, Depthwise)
    inner, outputs = weights.codes.shape if depthwise else weights.codes.shape[::-1]
    kind = "int8_t" if weights.bits == 8 else "uint8_t"
    arrays = (Array(codes, kind, packed(weights)), Array(bias, "int32_t", weights.bias), *arrays)
    cast = "" if weights.bits == 8 else "(const int8_t *)"
    values = (f"{cast}{codes}", bias, scaling, inner, outputs, writer.grid(op.output))
    return writer.parameters("layer", index, values), arrays


def _conv(writer: Writer, index: int, op: Conv) -> Call:
    layer, arrays = _layer(writer, index, op)
    geometry = writer.parameters("window", index, _window(op.window))
    suffix = "" if op.weights.bits == 8 else "4"
    zero = writer.tensor(op.inputs[0]).zero_point
    x, y = writer.bytes_at(op.inputs[0]), writer.at(op.output)
    call = writer.call(f"conv{suffix}", x, f"&window{index}", zero, f"&layer{index}", y, writer.scratch(index))
    return Call(op, ("window", *_GEMM, f"gemm{suffix}", "patch", f"conv{suffix}"), arrays, (geometry, layer, call))


def _depthwise(writer: Writer, index: int, op: Depthwise) -> Call:
    layer, arrays = _layer(writer, index, op)
    geometry = writer.parameters("window", index, _window(op.window))
    zero = writer.tensor(op.inputs[0]).zero_point
    x, y = writer.bytes_at(op.inputs[0]), writer.at(op.output)
    call = writer.call("depthwise", x, f"&window{index}", zero, f"&layer{index}", y, writer.scratch(index))
    return Call(op, ("window", *_GEMM, "patch", "depthwise"), arrays, (geometry, layer, call))


def _fully_connected(writer: Writer, index: int, op: FullyConnected) -> Call:
    layer, arrays = _layer(writer, index, op)
    suffix = "" if op.weights.bits == 8 else "4"
    x, y = writer.bytes_at(op.inputs[0]), writer.at(op.output)
    call = writer.call(f"fully_connected{suffix}", x, op.rows, f"&layer{index}", y, writer.scratch(index))
    return Call(op, (*_GEMM, f"gemm{suffix}", f"fully_connected{suffix}"), arrays, (layer, call))


def _matmul(writer: Writer, index: int, op: MatMul) -> Call:
    scaling, arrays = writer.scaling(index, op.scaling)
    zeros = [writer.tensor(name).zero_point for name in op.inputs]
    layer = f"{{NULL, NULL, {scaling}, {op.inner}, {op.columns}, {writer.grid(op.output)}}}"
    product = writer.parameters("product", index, (op.batch, op.rows, *zeros, layer))
    operands = [writer.bytes_at(name) for name in op.inputs]
    call = writer.call("matmul", *operands, f"&product{index}", writer.at(op.output), writer.scratch(index))
    return Call(op, (*_GEMM, "gemm", "matmul"), arrays, (product, call))


def _requantize(writer: Writer, index: int, op: Requantize) -> Call:
    source = writer.tensor(op.inputs[0])
    scaling: str = "{NULL, NULL, 0, 0}"
    arrays: tuple[Array, ...] = ()
    if op.scaling is not None:
        scaling, arrays = writer.scaling(index, op.scaling, stepping=not op.by_row)
    missing = 5 - len(op.dims)
    dims, strides = (1,) * missing + op.dims, (0,) * missing + op.strides
    lists = [f"{{{', '.join(map(str, values))}}}" for values in (dims, strides)]
    values = (*lists, op.offset, source.zero_point, int(source.wide), scaling, int(op.by_row), writer.grid(op.output))
    gather = writer.parameters("gather", index, values)
    call = writer.call("requantize", writer.at(op.inputs[0]), f"&gather{index}", writer.at(op.output))
    return Call(op, ("requantize",), arrays, (gather, call))


def _table(writer: Writer, index: int, op: Table) -> Call:
    source = writer.tensor(op.inputs[0])
    values = Array(writer.name(index, "table"), "int16_t", op.values)
    grid = writer.parameters("grid", index, writer.grid(op.output)[1:-1].split(", "))
    kernel = "interpolate" if source.wide else "table"
    x = writer.at(op.inputs[0], "(const int16_t *)(const void *)") if source.wide else writer.bytes_at(op.inputs[0])
    more = (op.fraction,) if source.wide else ()
    call = writer.call(kernel, x, writer.amount(source.size), values.name, *more, f"&grid{index}", writer.at(op.output))
    return Call(op, (kernel,), (values,), (grid, call))


def _operands(writer: Writer, op: Op) -> tuple[object, ...]:
    first, second = (writer.tensor(name) for name in op.inputs)
    zeros, widths = f"{{{first.zero_point}, {second.zero_point}}}", f"{{{int(first.wide)}, {int(second.wide)}}}"
    return first.size, second.size, zeros, widths


def _add(writer: Writer, index: int, op: Add) -> Call:
    scaling = op.scaling
    multipliers = f"{{{scaling.multiplier[0]}, {scaling.multiplier[1]}}}"
    values = (*_operands(writer, op), multipliers, scaling.left, scaling.shift[0], writer.grid(op.output))
    call = writer.call("add", *(writer.at(n) for n in op.inputs), f"&sum{index}", writer.at(op.output))
    return Call(op, ("vector", "add"), (), (writer.parameters("sum", index, values), call))


def _mul(writer: Writer, index: int, op: Mul) -> Call:
    scaling = op.scaling
    rule = (scaling.multiplier[0], scaling.shift[0])
    values = (*_operands(writer, op), *rule, writer.grid(op.output))
    call = writer.call("mul", *(writer.at(n) for n in op.inputs), f"&factor{index}", writer.at(op.output))
    return Call(op, ("mul",), (), (writer.parameters("factor", index, values), call))


def _softmax(writer: Writer, index: int, op: Softmax) -> Call:
    powers = Array(f"{writer.prefix}_powers", "uint16_t", EXP_TABLE)
    wide = int(writer.tensor(op.inputs[0]).wide)
    numbers = (f"{op.slope}u", f"{op.gain}u", op.slope_shift, op.left, op.shift)
    values = (op.rows, op.length, wide, *numbers, writer.grid(op.output))
    x, y = writer.at(op.inputs[0]), writer.at(op.output)
    call = writer.call("softmax", x, f"&exponents{index}", powers.name, y, writer.scratch(index))
    return Call(op, ("zeros", *_GEMM, "softmax"), (powers,), (writer.parameters("exponents", index, values), call))


def _norm(writer: Writer, index: int, op: Norm) -> Call:
    source = writer.tensor(op.inputs[0])
    gain = Array(writer.name(index, "gain"), "int32_t", op.gain.multiplier)
    offset = Array(writer.name(index, "offset"), "int32_t", op.offset)
    rule = (gain.name, offset.name, int(len(op.offset) > 1), op.gain.left, op.gain.shift[0])
    sizes = (op.rows, op.length, int(op.centred), source.zero_point, int(source.wide), f"INT64_C({op.epsilon})")
    normal = writer.parameters("normal", index, (*sizes, *rule, writer.grid(op.output)))
    call = writer.call("norm", writer.at(op.inputs[0]), f"&normal{index}", writer.at(op.output))
    return Call(op, ("zeros", "norm"), (gain, offset), (normal, call))


def _average(writer: Writer, index: int, op: Mean | AveragePool, sizes: Sequence[int]) -> str:
    source, scaling = writer.tensor(op.inputs[0]), op.scaling
    rule = (scaling.multiplier[0], scaling.left, scaling.shift[0], writer.grid(op.output))
    return writer.parameters("average", index, (*sizes, source.zero_point, int(source.wide), *rule))


def _mean(writer: Writer, index: int, op: Mean) -> Call:
    average = _average(writer, index, op, (op.outer, op.reduced, op.inner))
    call = writer.call("mean", writer.at(op.inputs[0]), f"&average{index}", writer.at(op.output))
    return Call(op, ("average", "mean"), (), (average, call))


def _average_pool(writer: Writer, index: int, op: AveragePool) -> Call:
    average = _average(writer, index, op, (1, op.window.kernel[0] * op.window.kernel[1], op.window.channels))
    geometry = writer.parameters("window", index, _window(op.window))
    x, y = writer.at(op.inputs[0]), writer.at(op.output)
    call = writer.call("average_pool", x, f"&window{index}", f"&average{index}", y)
    return Call(op, ("window", "average", "average_pool"), (), (geometry, average, call))


def _max_pool(writer: Writer, index: int, op: MaxPool) -> Call:
    geometry = writer.parameters("window", index, _window(op.window))
    grid = writer.parameters("grid", index, writer.grid(op.output)[1:-1].split(", "))
    wide = int(writer.tensor(op.inputs[0]).wide)
    x, y = writer.at(op.inputs[0]), writer.at(op.output)
    call = writer.call("max_pool", x, f"&window{index}", wide, f"&grid{index}", y)
    return Call(op, ("window", "max_pool"), (), (geometry, grid, call))


def _concat(writer: Writer, index: int, op: Concat) -> Call:
    width = 2 if writer.tensor(op.output).wide else 1
    lines, start, row = [], 0, sum(op.sizes)
    for name, size in zip(op.inputs, op.sizes, strict=True):
        sizes = (writer.amount(op.outer), size * width, start * width, row * width)
        lines.append(writer.call("concat", writer.at(name), *sizes, writer.at(op.output)))
        start += size
    return Call(op, ("concat",), (), tuple(lines))


_WRITERS: Mapping[type[Op], Callable[[Writer, int, Any], Call]] = {
    Conv: _conv,
    Depthwise: _depthwise,
    FullyConnected: _fully_connected,
    MatMul: _matmul,
    Requantize: _requantize,
    Table: _table,
    Add: _add,
    Mul: _mul,
    Softmax: _softmax,
    Norm: _norm,
    Mean: _mean,
    AveragePool: _average_pool,
    MaxPool: _max_pool,
    Concat: _concat,
}
