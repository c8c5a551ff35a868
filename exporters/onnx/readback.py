"""Read an .onnx file: operations, kernels, multiply-accumulates, and the weight integers.

The file is the truth: a layer counts as integer because its operands in the file are, not because the plan says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import MissingError, ModelError
from edgeq.exporters.base import FileOp, ReadBack
from edgeq.exporters.matching import Constant, match_weights
from edgeq.spec import QuantPlan

_PRODUCTS = frozenset({"Conv", "MatMul", "Gemm", "ConvTranspose"})
_BEHIND = ("Cast", "Mul", "Add", "Relu", "QuantizeLinear", "DequantizeLinear")
"""What may belong to a product behind it, in this order."""
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def read_onnx(path: Path, plan: QuantPlan | None) -> ReadBack:
    """Read `path` and compare its integer constants with the weights of `plan`.

    Args:
        path: File to read.
        plan: Plan whose weights the file should hold; None for a float file.

    Raises:
        ModelError: EQ-M452 when it is not an ONNX file.
        MissingError: EQ-P450 when onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        message = f"reading .onnx needs onnx: {error}"
        raise MissingError(message, code="EQ-P450", hint="pip install 'edgeq[onnx]'") from error
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    except Exception as error:  # protobuf has its own kinds
        message = f"{path.name} is not an ONNX file: {error}"
        raise ModelError(message, code="EQ-M452", place=path.name, hint="export the model again") from error
    reader = _Reader(model.graph)
    match = match_weights(reader.integer_constants(), plan)
    return ReadBack(tuple(reader.ops()), match.weights, match.missing, match.extra, sites=match.sites)


class _Reader:
    """Walks the nodes of a graph."""

    def __init__(self, graph: Any) -> None:
        from onnx import helper

        self.graph = graph
        self.attribute = helper.get_node_attr_value
        self.constants = {entry.name: entry for entry in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        entries = (*graph.value_info, *graph.input, *graph.output)
        self.shapes = {e.name: tuple(d.dim_value for d in e.type.tensor_type.shape.dim) for e in entries}
        self.shapes.update({name: tuple(entry.dims) for name, entry in self.constants.items()})

    def ops(self) -> list[FileOp]:
        """The operations, in order."""
        return [
            FileOp(
                index=position,
                op=node.op_type,
                name=node.name or node.output[0],
                macs=self._macs(node),
                kernel=self._kernel(node),
                bytes=sum(len(self.constants[n].raw_data) for n in node.input if n in self.constants),
            )
            for position, node in enumerate(self.graph.node)
        ]

    def _macs(self, node: Any) -> int:
        produced = int(np.prod(self.shapes.get(node.output[0], (0,)), dtype=np.int64))
        if node.op_type in ("MatMul", "MatMulInteger"):
            return produced * int(self.shapes[node.input[0]][-1])
        if node.op_type == "Gemm":
            return produced * int(self.shapes[node.input[1]][1 if self._flag(node, "transB") else 0])
        if node.op_type == "Conv":
            return produced * int(np.prod(self.shapes[node.input[1]][1:], dtype=np.int64))
        if node.op_type == "ConvTranspose":
            read = int(np.prod(self.shapes[node.input[0]], dtype=np.int64))
            return read * int(np.prod(self.shapes[node.input[1]][1:], dtype=np.int64))
        return 0

    def _flag(self, node: Any, name: str) -> bool:
        return any(a.name == name and a.i for a in node.attribute)

    def _kernel(self, node: Any) -> str:
        if node.op_type == "MatMulInteger":
            return "dynamic"
        if node.op_type in _CONVERSIONS:
            return "float"
        operands = node.input[:2] if node.op_type in _PRODUCTS else node.input
        floating = [n for n in operands if n in self.producer]
        if not floating or any(self.producer[n].op_type != "DequantizeLinear" for n in floating):
            return "float"
        if node.op_type in _PRODUCTS:
            return "int8" if len(floating) == 2 else "float"
        readers = self.readers.get(node.output[0], [])
        return "int8" if readers and all(r.op_type == "QuantizeLinear" for r in readers) else "float"

    def integer_constants(self) -> list[Constant]:
        """Name, codes and scales of every integer constant that a product or convolution reads."""
        found: dict[str, Constant] = {}
        for node in self.graph.node:
            if node.op_type == "MatMulInteger":
                self._keep(found, node, node.input[1], self._dynamic_scales(node), transposed=True)
            elif node.op_type in _PRODUCTS:
                source = self.producer.get(node.input[1])
                if source is not None and source.op_type == "DequantizeLinear":
                    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not self._flag(node, "transB"))
                    self._keep(found, node, source.input[0], self._value(source.input[1]), transposed)
        return list(found.values())

    def _keep(
        self, found: dict[str, Constant], node: Any, name: str, scales: NDArray[Any] | None, transposed: bool
    ) -> None:
        codes = self._value(name)
        if codes is not None and scales is not None:
            layout = codes.T if transposed and codes.ndim == 2 else codes
            results = (*(found[name].results if name in found else ()), self._result(node))
            values = np.ascontiguousarray(layout, np.int32), np.asarray(scales, np.float32)
            found[name] = Constant(name, [values[0]], values[1], results)

    def _result(self, node: Any) -> str:
        """Where the result of a product is read: behind its scales, its bias, its activation and its grid.

        What lies between belongs to one kernel, which reading it would take apart.
        """
        name: str = node.output[0]
        for step in _BEHIND:
            readers = self.readers.get(name, [])
            if len(readers) != 1 or readers[0].op_type != step:
                continue
            if step == "Add" and not any(self._constant(n) for n in readers[0].input):
                continue
            if step == "Mul" and node.op_type != "MatMulInteger":
                continue
            if step == "QuantizeLinear" and not self._restored(readers[0]):
                break
            name = readers[0].output[0]
        return name

    def _constant(self, name: str) -> bool:
        """Whether `name` is a constant, possibly as integers with their scales."""
        node = self.producer.get(name)
        restored = node is not None and node.op_type == "DequantizeLinear" and self._constant(node.input[0])
        return name in self.constants or restored

    def _restored(self, node: Any) -> bool:
        readers = self.readers.get(node.output[0], [])
        return len(readers) == 1 and readers[0].op_type == "DequantizeLinear"

    def _value(self, name: str) -> NDArray[Any] | None:
        """A constant, possibly widened from INT4; None for what is computed."""
        from onnx import numpy_helper

        if name in self.constants:
            return np.asarray(numpy_helper.to_array(self.constants[name]))
        node = self.producer.get(name)
        return self._value(node.input[0]) if node is not None and node.op_type == "Cast" else None

    def _dynamic_scales(self, node: Any) -> NDArray[Any] | None:
        """The weight's scales, which are multiplied with the input's before the product is scaled."""
        pending = [node.output[0]]
        for _ in range(3):
            for reader in self.readers.get(pending[-1], []):
                if reader.op_type == "Cast":
                    pending.append(reader.output[0])
                elif reader.op_type == "Mul":
                    other = next((n for n in reader.input if n != pending[-1]), "")
                    factors = self.producer[other].input if other in self.producer else ()
                    return next((self._value(n) for n in factors if n in self.constants), None)
        return None
