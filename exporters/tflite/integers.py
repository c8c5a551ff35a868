"""An int8 .tflite file as a network of integers: its tensors, scales and zero points as they are.

The file's own arithmetic rounds twice where it moves a sum to the grid of a result (gemmlowp's way), ours once: codes
differ by one step now and then, which is measured where both run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.exporters.tflite.flatbuffer import DAMAGED, TfliteFile
from edgeq.graph.intgraph.arithmetic import Ints, dyadic
from edgeq.graph.intgraph.builder import Builder, Grid, grid_of
from edgeq.graph.intgraph.graph import (
    Add,
    AveragePool,
    Conv,
    Depthwise,
    FullyConnected,
    IntGraph,
    IntTensor,
    MaxPool,
    Op,
    Port,
    Weights,
    Window,
)
from edgeq.graph.intgraph.parts import layer_weights, softmax_of, sum_scaling

_SAME = 0  # of schema.Padding
_CLIPS: Mapping[int, tuple[float | None, float | None]] = MappingProxyType(
    {0: (None, None), 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
)
"""Bounds of schema.ActivationFunctionType: none, ReLU, ReLU between -1 and 1, ReLU6."""


def read_integers(path: Path) -> IntGraph:
    """The network of integers that a file holds.

    Args:
        path: An int8 .tflite file of one image or row (batch 1).

    Raises:
        ModelError: EQ-M021, no such file; EQ-M920, an operation that has no integer kernel here; EQ-M921, a tensor
            that is not int8; EQ-M501, a sum could overflow.
        MissingError: EQ-P001, ai-edge-litert is not installed.
    """
    try:
        return _Reader(path).read()
    except DAMAGED as error:
        message, hint = f"{path.name} is damaged: {error}", "restore the file, or convert the model again"
        raise ModelError(message, code="EQ-M021", place=path.name, hint=hint) from error


class _Reader:
    """Walks the only subgraph of a file."""

    def __init__(self, path: Path) -> None:
        self.file, self.path = TfliteFile.read(path), path
        self.model, schema = self.file.model, self.file.schema
        if len(self.model.subgraphs) != 1:
            raise self._refused("MAIN", f"the file has {len(self.model.subgraphs)} subgraphs")
        self.graph = self.model.subgraphs[0]
        self.int8, self.int32 = schema.TensorType.INT8, schema.TensorType.INT32
        self.builder = Builder(path.stem)
        self.held: dict[int, IntTensor] = {}

    def read(self) -> IntGraph:
        inputs = [self._port(index, self._new(index)) for index in self.graph.inputs]
        for place, op in enumerate(self.graph.operators):
            self._operation(place, op)
        outputs = [self._port(index, self.held[index]) for index in self.graph.outputs]
        if {port.tensor for port in inputs} & {port.tensor for port in outputs}:
            raise self._refused("RESHAPE", "an output is an input")
        return self.builder.finish(inputs, outputs)

    def _operation(self, place: int, op: Any) -> None:
        kind = self.file.kind(op)
        if kind not in _READERS:
            raise self._refused(f"{kind} (operation {place})", f"kernels are: {', '.join(sorted(_READERS))}")
        made = _READERS[kind](self, f"{kind.lower()}_{place}", op)
        if made is not None:
            self.builder.ops.append(made)

    def _port(self, index: int, tensor: IntTensor) -> Port:
        shape = self.shape(index)
        return Port(tensor.name, shape, tuple(range(len(shape))))

    def _refused(self, place: str, reason: str) -> ModelError:
        message = f"{self.path.name}: {place} cannot run in integers: {reason}"
        hint = "export the float model instead: edgeq export MODEL --device cortex-m4"
        return ModelError(message, code="EQ-M920", place=place, hint=hint)

    def refused(self, name: str, reason: str) -> ModelError:
        """The error for an operation that has no kernel."""
        return self._refused(name, reason)

    def shape(self, index: int) -> tuple[int, ...]:
        """Of a tensor."""
        shape = tuple(int(n) for n in self.graph.tensors[index].shape)
        if not shape or min(shape) < 1:
            raise self._refused(self.label(index), f"its shape is {shape}")
        return shape

    def label(self, index: int) -> str:
        """What a tensor is called in the file."""
        return (self.graph.tensors[index].name or b"").decode("utf-8", "replace") or f"tensor {index}"

    def scales(self, index: int, kind: int) -> tuple[NDArray[np.float64], int]:
        """Steps and zero point of a tensor, which must be of a kind and on a grid."""
        tensor = self.graph.tensors[index]
        grid = tensor.quantization
        if tensor.type != kind or grid is None or grid.scale is None or not len(grid.scale):
            message = f"{self.path.name}: {self.label(index)} is no quantized tensor of the kind that kernels read"
            hint = "quantize the file fully, inputs and outputs included (TFLITE_BUILTINS_INT8)"
            raise ModelError(message, code="EQ-M921", place=self.label(index), hint=hint)
        zeros = np.zeros(1, np.int64) if grid.zeroPoint is None else np.asarray(grid.zeroPoint, np.int64)
        return np.asarray(grid.scale, np.float64), int(zeros[0]) if not zeros[1:].any() else 1

    def constant(self, index: int, dtype: type[np.generic]) -> Ints:
        """Values of a constant, in its shape."""
        data = self.model.buffers[self.graph.tensors[index].buffer].data
        if data is None or not len(data):
            raise self._refused(self.label(index), "its values are not in the file")
        values: Ints = np.asarray(data, np.uint8).view(dtype).astype(np.int64)
        return values.reshape(self.shape(index))

    def _new(self, index: int, clip: tuple[float | None, float | None] = (None, None)) -> IntTensor:
        """A buffer for a tensor."""
        steps, zero = self.scales(index, self.int8)
        grid = Grid(float(steps[0]), zero, -128, 127, False).narrowed(*clip)
        self.held[index] = self.builder.new(self.label(index), self.shape(index), grid)
        return self.held[index]

    def result(self, op: Any, activation: int = 0) -> IntTensor:
        """The buffer that an operation writes."""
        if activation not in _CLIPS:
            raise self._refused(self.label(op.outputs[0]), f"activation {activation} is fused into it")
        return self._new(op.outputs[0], _CLIPS[activation])

    def operand(self, op: Any, place: int = 0) -> IntTensor:
        """A computed tensor that an operation reads."""
        index = op.inputs[place]
        if index not in self.held:
            raise self._refused(self.label(index), "an operand is constant")
        return self.held[index]

    def window(self, op: Any, kernel: Sequence[int], name: str) -> Window:
        """Geometry of a convolution or a pooling."""
        _, height, width, channels = self.shape(op.inputs[0])
        options = op.builtinOptions
        dilation = (getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1))
        stride, sizes, output = (options.strideH, options.strideW), (height, width), self.shape(op.outputs[0])[1:3]
        missing = [
            max(0, (out - 1) * s + (k - 1) * d + 1 - size) if options.padding == _SAME else 0
            for out, s, k, d, size in zip(output, stride, kernel, dilation, sizes, strict=True)
        ]
        before, odd = (missing[0] // 2, missing[1] // 2), (missing[0] % 2, missing[1] % 2)
        found = Window(height, width, channels, (kernel[0], kernel[1]), stride, before, dilation, odd)
        if self.shape(op.inputs[0])[0] != 1 or found.output != output:
            raise self._refused(name, f"it makes {output} of {sizes}, in a batch of {self.shape(op.inputs[0])[0]}")
        return found

    def weights(self, op: Any, source: IntTensor, output: IntTensor, codes: Ints, name: str) -> Weights:
        """Weights `(outputs, inner)` of a layer with the bias and scales of the file."""
        steps, zero = self.scales(op.inputs[1], self.int8)
        if zero:
            raise self._refused(name, "its weights have a zero point")
        bias = np.zeros(len(codes), np.int64)
        units = np.broadcast_to(source.scale * steps, len(codes))
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            bias = self.constant(op.inputs[2], np.int32).ravel()
            own, _ = self.scales(op.inputs[2], self.int32)
            if not np.allclose(own, units, rtol=1e-3):
                raise self._refused(name, "its bias is on another grid than its products")
        return layer_weights(codes, bias, units, source, grid_of(output), 8, name)


def _conv(reader: _Reader, name: str, op: Any) -> Op:
    source, output = reader.operand(op), reader.result(op, op.builtinOptions.fusedActivationFunction)
    codes = reader.constant(op.inputs[1], np.int8)
    if codes.shape[3] != source.shape[3]:
        raise reader.refused(name, "it has groups")
    window = reader.window(op, codes.shape[1:3], name)
    weights = reader.weights(op, source, output, codes.reshape(len(codes), -1), name)
    return Conv(name, (source.name,), output.name, window, weights)


def _depthwise(reader: _Reader, name: str, op: Any) -> Op:
    source, output = reader.operand(op), reader.result(op, op.builtinOptions.fusedActivationFunction)
    codes = reader.constant(op.inputs[1], np.int8)
    if codes.shape[3] != source.shape[3]:
        raise reader.refused(name, f"it makes {codes.shape[3]} channels of {source.shape[3]}")
    window = reader.window(op, codes.shape[1:3], name)
    made = reader.weights(op, source, output, codes.reshape(-1, codes.shape[3]).T, name)
    weights = Weights(np.ascontiguousarray(made.codes.T), made.bias, made.scaling, 8)
    return Depthwise(name, (source.name,), output.name, window, weights)


def _fully_connected(reader: _Reader, name: str, op: Any) -> Op:
    source, output = reader.operand(op), reader.result(op, op.builtinOptions.fusedActivationFunction)
    codes = reader.constant(op.inputs[1], np.int8)
    weights = reader.weights(op, source, output, codes, name)
    return FullyConnected(name, (source.name,), output.name, source.size // codes.shape[1], weights)


def _add(reader: _Reader, name: str, op: Any) -> Op:
    operands = [reader.operand(op, place) for place in (0, 1)]
    output = reader.result(op, op.builtinOptions.fusedActivationFunction)
    if operands[0].shape != operands[1].shape:
        raise reader.refused(name, f"it adds {operands[0].shape} and {operands[1].shape}")
    scaling = sum_scaling(operands, (1.0, 1.0), grid_of(output), name)
    return Add(name, (operands[0].name, operands[1].name), output.name, scaling)


def _average_pool(reader: _Reader, name: str, op: Any) -> Op:
    options = op.builtinOptions
    source, output = reader.operand(op), reader.result(op, options.fusedActivationFunction)
    window = reader.window(op, (options.filterHeight, options.filterWidth), name)
    if any((*window.padding, *window.extra)):
        raise reader.refused(name, "it averages over a border")
    area = window.kernel[0] * window.kernel[1]
    scaling = dyadic(source.scale / output.scale / area, area * source.reach, name)
    return AveragePool(name, (source.name,), output.name, window, scaling)


def _max_pool(reader: _Reader, name: str, op: Any) -> Op:
    options = op.builtinOptions
    source, output = reader.operand(op), reader.result(op, options.fusedActivationFunction)
    if (source.scale, source.zero_point) != (output.scale, output.zero_point):
        raise reader.refused(name, "it changes the grid")
    window = reader.window(op, (options.filterHeight, options.filterWidth), name)
    return MaxPool(name, (source.name,), output.name, window)


def _reshape(reader: _Reader, name: str, op: Any) -> None:
    del name
    reader.held[op.outputs[0]] = reader.operand(op)


def _softmax(reader: _Reader, name: str, op: Any) -> Op:
    source, output = reader.operand(op), reader.result(op)
    if op.builtinOptions.beta != 1:
        raise reader.refused(name, f"its beta is {op.builtinOptions.beta:g}")
    return softmax_of(name, source, output, reader.shape(op.inputs[0])[-1])


_READERS: Mapping[str, Callable[[_Reader, str, Any], Op | None]] = MappingProxyType(
    {
        "CONV_2D": _conv,
        "DEPTHWISE_CONV_2D": _depthwise,
        "FULLY_CONNECTED": _fully_connected,
        "ADD": _add,
        "AVERAGE_POOL_2D": _average_pool,
        "MAX_POOL_2D": _max_pool,
        "RESHAPE": _reshape,
        "SOFTMAX": _softmax,
    }
)
