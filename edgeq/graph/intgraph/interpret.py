"""The reference interpreter: numpy, integers only. The generated C gives the same integers on every core."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from numpy.typing import NDArray

from edgeq.errors import DataError
from edgeq.graph.intgraph.arithmetic import (
    EXP_BITS,
    EXP_TABLE,
    NORM_FRACTION,
    Ints,
    leading_zeros,
    shift_round,
    square_root,
)
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
    Port,
    Requantize,
    Softmax,
    Table,
    Weights,
    Window,
)

Codes = NDArray[Any]
Change = Callable[[Op, Mapping[str, Codes], Codes], Codes]
"""`(operation, tensors so far, its result) -> the result to go on with`, all flat."""


def quantize_input(graph: IntGraph, port: Port, value: NDArray[np.float32]) -> Codes:
    """Codes of a float input in memory order, flat.

    Args:
        graph: The network.
        port: Which input.
        value: Of `port.shape`.

    Raises:
        DataError: Another shape, or not finite.
    """
    tensor = graph.tensors[port.tensor]
    if value.shape != port.shape or not np.isfinite(value).all():
        message = f"input {port.tensor} wants finite values of shape {port.shape}, not {value.shape}"
        raise DataError(message, code="EQ-D500", place=port.tensor, hint="preprocess as for the float network")
    # As torch does it: float32 arithmetic, reciprocal of the scale, halves to even.
    steps = np.rint(value.transpose(port.order).ravel() * np.float32(1.0 / tensor.scale)) + tensor.zero_point
    codes: Codes = np.clip(steps, tensor.low, tensor.high).astype(tensor.dtype)
    return codes


def dequantize_output(graph: IntGraph, port: Port, codes: Codes) -> NDArray[np.float32]:
    """Reals of an output in the shape of the float network."""
    tensor = graph.tensors[port.tensor]
    reals = ((codes.astype(np.int64) - tensor.zero_point) * tensor.scale).astype(np.float32)
    held = reals.reshape([port.shape[axis] for axis in port.order])
    return np.ascontiguousarray(held.transpose(np.argsort(port.order)))


def interpret(graph: IntGraph, inputs: Sequence[Codes]) -> list[Codes]:
    """Run the network on codes; flat arrays in and out, in the order of its ports."""
    values = trace(graph, inputs)
    return [values[port.tensor] for port in graph.outputs]


def trace(graph: IntGraph, inputs: Sequence[Codes], change: Change | None = None) -> dict[str, Codes]:
    """Run the network and keep every tensor, flat, by name.

    Args:
        graph: The network.
        inputs: Codes in the order of its inputs.
        change: Called with each operation, the tensors so far and its result; what it returns goes on instead.

    Raises:
        DataError: Codes of another size or kind.
    """
    values: dict[str, Codes] = {name: codes.ravel() for name, codes in graph.constants.items()}
    for port, codes in zip(graph.inputs, inputs, strict=True):
        tensor = graph.tensors[port.tensor]
        if codes.size != tensor.size or codes.dtype != tensor.dtype:
            message = f"input {port.tensor} wants {tensor.size} codes of {tensor.dtype.__name__}"
            raise DataError(message, code="EQ-D500", place=port.tensor, hint="make them with quantize_input()")
        values[port.tensor] = codes.ravel()
    for op in graph.ops:
        result = run_op(graph.tensors, op, [values[name] for name in op.inputs])
        values[op.output] = result if change is None else change(op, values, result)
    return values


def run_op(tensors: Mapping[str, IntTensor], op: Op, inputs: Sequence[Codes]) -> Codes:
    """One operation on flat codes."""
    output = tensors[op.output]
    operands = [tensors[name] for name in op.inputs]
    result = _KERNELS[type(op)](op, operands, [x.astype(np.int64) for x in inputs], output)
    return result.ravel().astype(output.dtype)


def _store(value: Ints, output: IntTensor) -> Ints:
    """Zero point added, and saturated."""
    return np.clip(value + output.zero_point, output.low, output.high)


def _multiply(left: Ints, right: Ints) -> Ints:
    """Matrix product through float64: exact, as lowering bounds every sum below 2^31, and fast."""
    result: Ints = (left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)
    return result


def _patches(window: Window, image: Ints, border: int) -> Ints:
    """Windows `(rows, columns, channels, kernel row, kernel column)` of a flat image."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = window.kernel, window.stride, window.padding, window.dilation
    held = image.reshape(window.height, window.width, window.channels)
    padded = np.pad(held, ((ph, ph + window.extra[0]), (pw, pw + window.extra[1]), (0, 0)), constant_values=border)
    views = sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(0, 1))
    result: Ints = views[::sh, ::sw, :, ::dh, ::dw]
    return result


def _weighted(rows: Ints, weights: Weights, output: IntTensor) -> Ints:
    """Rows `(n, inner)` times weights."""
    return _store(weights.scaling(_multiply(rows, weights.codes.T) + weights.bias), output)


def _conv(op: Conv, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    patches = _patches(op.window, inputs[0], operands[0].zero_point).transpose(0, 1, 3, 4, 2)
    return _weighted(patches.reshape(-1, op.weights.codes.shape[1]), op.weights, output)


def _depthwise(op: Depthwise, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    patches = _patches(op.window, inputs[0], operands[0].zero_point).transpose(0, 1, 3, 4, 2)
    taps = patches.reshape(-1, *op.weights.codes.shape)
    return _store(op.weights.scaling((taps * op.weights.codes).sum(1) + op.weights.bias), output)


def _fully_connected(
    op: FullyConnected, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor
) -> Ints:
    return _weighted(inputs[0].reshape(op.rows, -1), op.weights, output)


def _matmul(op: MatMul, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    left = (inputs[0] - operands[0].zero_point).reshape(op.batch, op.rows, op.inner)
    right = (inputs[1] - operands[1].zero_point).reshape(op.batch, op.columns, op.inner)
    return _store(op.scaling(_multiply(left, right.transpose(0, 2, 1))), output)


def _requantize(op: Requantize, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    base = np.ascontiguousarray(inputs[0])[op.offset :]
    gathered: Ints = as_strided(base, op.dims, [s * base.itemsize for s in op.strides], writeable=False)
    if op.scaling is None:
        return np.clip(gathered, output.low, output.high)
    centred = gathered - operands[0].zero_point
    if op.by_row:
        return _store(op.scaling(centred.swapaxes(-1, -2)).swapaxes(-1, -2), output)
    return _store(op.scaling(centred), output)


def _table(op: Table, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    if not operands[0].wide:
        return op.values[inputs[0] + 128]
    position = inputs[0] + 32768
    index, part = position >> 7, position & 127
    between = op.values[index] * (128 - part) + op.values[index + 1] * part
    return np.clip(shift_round(between, 7 + op.fraction), output.low, output.high)


def _repeated(second: Ints, size: int) -> Ints:
    return np.tile(second, size // len(second))


def _add(op: Add, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    first, second = inputs[0] - operands[0].zero_point, inputs[1] - operands[1].zero_point
    second = _repeated(second, len(first))
    scaling = op.scaling
    total = (first << scaling.left) * scaling.multiplier[0] + (second << scaling.left) * scaling.multiplier[1]
    return _store(shift_round(total, int(scaling.shift[0])), output)


def _mul(op: Mul, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    first, second = inputs[0] - operands[0].zero_point, inputs[1] - operands[1].zero_point
    return _store(op.scaling(first * _repeated(second, len(first))), output)


def _softmax(op: Softmax, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    rows = inputs[0].reshape(op.rows, op.length)
    octaves = shift_round((rows.max(axis=1, keepdims=True) - rows) * op.slope, op.slope_shift)
    whole = np.minimum(octaves >> EXP_BITS, 31)
    powers = EXP_TABLE[octaves & ((1 << EXP_BITS) - 1)] >> whole
    total = powers.sum(axis=1, keepdims=True)
    zeros = leading_zeros(total, 32)
    reciprocal = (1 << 31) // ((total << zeros) >> 16)
    multiplier = (reciprocal * op.gain) >> 16
    return _store(shift_round((powers << op.left) * multiplier, op.shift - zeros), output)


def _norm(op: Norm, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    n = op.length
    rows = inputs[0].reshape(op.rows, n)
    rows = rows if op.centred else rows - operands[0].zero_point
    total = rows.sum(axis=1, keepdims=True) if op.centred else np.zeros((op.rows, 1), np.int64)
    spread = n * (rows * rows).sum(axis=1, keepdims=True) - total * total + op.epsilon
    zeros = leading_zeros(spread, 64) & ~1
    root = square_root(((spread.astype(np.uint64) << zeros.astype(np.uint64)) >> np.uint64(32)).astype(np.int64))
    reciprocal = (1 << 31) // root
    normal = shift_round((n * rows - total) * reciprocal, 47 - NORM_FRACTION - zeros // 2)
    high = ((normal << op.gain.left) * op.gain.multiplier) >> 32
    result: Ints = np.clip((high + op.offset) >> (op.gain.shift - 32), output.low, output.high)
    return result


def _mean(op: Mean, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    centred = (inputs[0] - operands[0].zero_point).reshape(op.outer, op.reduced, op.inner)
    return _store(op.scaling(centred.sum(axis=1)), output)


def _average_pool(op: AveragePool, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    zero = operands[0].zero_point
    return _store(op.scaling((_patches(op.window, inputs[0], zero) - zero).sum(axis=(3, 4))), output)


def _max_pool(op: MaxPool, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    result: Ints = np.clip(_patches(op.window, inputs[0], -32768).max(axis=(3, 4)), output.low, output.high)
    return result


def _concat(op: Concat, operands: Sequence[IntTensor], inputs: Sequence[Ints], output: IntTensor) -> Ints:
    return np.concatenate([x.reshape(op.outer, -1) for x in inputs], axis=1)


_KERNELS: Mapping[type[Op], Callable[[Any, Sequence[IntTensor], Sequence[Ints], IntTensor], Ints]] = {
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
