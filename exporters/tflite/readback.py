"""Read a .tflite file by its schema: operations, kernels, multiply-accumulates, and the weight integers.

The file is the truth: a layer counts as integer because its tensors in the file are, not because the plan says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.exporters.base import FileOp, ReadBack
from edgeq.exporters.matching import Constant, match_weights
from edgeq.exporters.tflite.flatbuffer import WEIGHT_OPERAND, TfliteFile
from edgeq.exporters.tflite.groups import groups_of
from edgeq.exporters.tflite.pack import unpack
from edgeq.spec import QuantPlan

_DATA_OPERAND = {"TRANSPOSE_CONV": 2}
_BIAS_OPERAND = {"FULLY_CONNECTED": 2, "CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "TRANSPOSE_CONV": 3}
_PICKS = ("GATHER", "GATHER_ND")
_BEHIND_PICKS = {"CAST": (0,), "RESHAPE": (0,), "SELECT": (1, 2), "SELECT_V2": (1, 2)}
"""Operands through which a picked row goes on; a choice has a filler for rows beyond the table."""


def read_tflite(path: Path, plan: QuantPlan | None) -> ReadBack:
    """Read `path` and compare its integer constants with the weights of `plan`.

    Args:
        path: File to read.
        plan: Plan whose weights the file should hold; None for a float file.

    Raises:
        ModelError: Not a TFLite file.
        MissingError: ai-edge-litert is not installed.
    """
    reader = _Reader(TfliteFile.read(path))
    match = match_weights(reader.integer_constants(), plan)
    facts = (match.weights, match.missing, match.extra, tuple(reader.misfits()))
    return ReadBack(tuple(reader.ops()), *facts, sites=match.sites)


class _Reader:
    """Walks the main subgraph of a parsed model."""

    def __init__(self, file: TfliteFile) -> None:
        self.file = file
        self.graph = file.model.subgraphs[0]
        types = file.schema.TensorType
        self.int8, self.int4, self.int16 = types.INT8, types.INT4, types.INT16

    def constant(self, index: int) -> NDArray[np.uint8] | None:
        return None if index < 0 else self.file.bytes_of(self.graph.tensors[index])

    def shape(self, index: int) -> tuple[int, ...]:
        shape = self.graph.tensors[index].shape
        return () if shape is None else tuple(int(d) for d in shape)

    def is_integer(self, index: int) -> bool:
        return self.graph.tensors[index].type in (self.int8, self.int4, self.int16)

    def ops(self) -> list[FileOp]:
        result = []
        for position, op in enumerate(self.graph.operators):
            name = self.file.kind(op)
            inputs = [] if op.inputs is None else [int(i) for i in op.inputs]
            output = int(op.outputs[0])
            result.append(
                FileOp(
                    index=position,
                    op=name,
                    name=self.graph.tensors[output].name.decode(errors="replace"),
                    macs=self._macs(name, inputs, output),
                    kernel=self._kernel(name, inputs, output),
                    bytes=sum(len(c) for i in inputs if (c := self.constant(i)) is not None),
                )
            )
        return result

    def _macs(self, name: str, inputs: list[int], output: int) -> int:
        produced = int(np.prod(self.shape(output), dtype=np.int64))
        if name in ("FULLY_CONNECTED", "CONV_2D"):
            return produced * int(np.prod(self.shape(inputs[1])[1:], dtype=np.int64))
        if name == "DEPTHWISE_CONV_2D":
            return produced * int(np.prod(self.shape(inputs[1])[1:3], dtype=np.int64))
        if name == "TRANSPOSE_CONV":
            read = int(np.prod(self.shape(inputs[2])[:3], dtype=np.int64))
            return read * int(np.prod(self.shape(inputs[1]), dtype=np.int64))
        if name == "BATCH_MATMUL":
            inner = self.shape(inputs[0])
            rows = self.shape(output)[-2]
            return produced * (int(np.prod(inner[-2:], dtype=np.int64)) // rows)
        return 0

    def _kernel(self, name: str, inputs: list[int], output: int) -> str:
        data = _DATA_OPERAND.get(name, 0)
        if name in WEIGHT_OPERAND:
            if not self.is_integer(inputs[WEIGHT_OPERAND[name]]):
                return "float"
            return "int8" if self.is_integer(inputs[data]) else "dynamic"
        operands = [i for i in inputs if i >= 0 and self.graph.tensors[i].type != 2]
        return "int8" if operands and self.is_integer(output) and self.is_integer(operands[0]) else "float"

    def misfits(self) -> list[str]:
        """Layers on integers whose bias does not have the scales of input and weight multiplied."""
        found = []
        for op in self.graph.operators:
            name = self.file.kind(op)
            place = _BIAS_OPERAND.get(name, len(op.inputs))
            if place >= len(op.inputs) or op.inputs[place] < 0:
                continue
            places = (_DATA_OPERAND.get(name, 0), WEIGHT_OPERAND[name], place)
            scales = [self._scales(int(op.inputs[p])) for p in places]
            if all(s.size for s in scales) and not np.allclose(scales[0] * scales[1], scales[2], rtol=1e-3, atol=0):
                found.append(f"{name} at tensor {int(op.outputs[0])}")
        return found

    def _scales(self, index: int) -> NDArray[np.float64]:
        """Scales of an integer tensor; empty for floats."""
        grid = self.graph.tensors[index].quantization
        return np.asarray([] if grid is None or grid.scale is None else grid.scale, dtype=np.float64)

    def integer_constants(self) -> list[Constant]:
        """Name, codes and scales of every int8 constant that a product, a convolution or a table reads."""
        found: dict[int, Constant] = self._tables()
        for op in self.graph.operators:
            operand = WEIGHT_OPERAND.get(self.file.kind(op))
            if operand is None:
                continue
            index = int(op.inputs[operand])
            raw = self.constant(index)
            if raw is None or not self.is_integer(index):
                continue
            result = self.graph.tensors[int(op.outputs[0])].name.decode(errors="replace")
            if index in found:
                found[index] = replace(found[index], results=(*found[index].results, result))
                continue
            tensor = self.graph.tensors[index]
            shape = self.shape(index)
            values = unpack(raw, int(np.prod(shape))) if tensor.type == self.int4 else raw.view(np.int8)
            codes = values.astype(np.int32).reshape(shape)
            scales = groups_of(self.file.model, self.graph, tensor, self.file.schema)
            if scales is None:
                scales = np.asarray(tensor.quantization.scale, dtype=np.float32)
            found[index] = Constant(tensor.name.decode(errors="replace"), _layouts(codes), scales, (result,))
        return list(found.values())

    def _tables(self) -> dict[int, Constant]:
        """Integer tables that rows are picked from, with the scales that the picked rows are multiplied by."""
        writers = {int(t): op for op in self.graph.operators for t in op.outputs}
        found: dict[int, Constant] = {}
        for op in self.graph.operators:
            if self.file.kind(op) != "MUL":
                continue
            picks = [self._pick(writers, int(t)) for t in op.inputs]
            for codes, scales in (picks, picks[::-1]):
                if codes is None or scales is None or not self.is_integer(codes) or self.is_integer(scales):
                    continue
                raw, factors = self.constant(codes), self.constant(scales)
                if raw is not None and factors is not None:
                    table = raw.view(np.int8).astype(np.int32).reshape(self.shape(codes))
                    name = self.graph.tensors[codes].name.decode(errors="replace")
                    found[codes] = Constant(name, [table], factors.view(np.float32).reshape(-1))
        return found

    def _pick(self, writers: Mapping[int, Any], tensor: int) -> int | None:
        """The table that `tensor` was picked from, past casts, reshapes and choices."""
        op = writers.get(tensor)
        if op is None:
            return None
        if self.file.kind(op) in _PICKS:
            return int(op.inputs[0])
        tables = [self._pick(writers, int(op.inputs[i])) for i in _BEHIND_PICKS.get(self.file.kind(op), ())]
        return next((t for t in tables if t is not None), None)


def _layouts(codes: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """The plan layouts a file constant can stand for.

    Linear as it is; OHWI as OIHW (convolution) or IOHW (transposed convolution; depthwise, where O is 1 in the file).
    """
    if codes.ndim == 2:
        return [codes, codes.reshape(*codes.shape, 1, 1)]
    if codes.ndim != 4:
        return [codes]
    layouts = [codes.transpose(0, 3, 1, 2), codes.transpose(3, 0, 1, 2)]
    if codes.shape[1:3] == (1, 1):  # a 1x1 convolution and a linear layer may be written as each other
        layouts.append(codes.reshape(codes.shape[0], codes.shape[3]))
    return layouts
