"""The exporter for microcontrollers: a network of integers as a file, from which the C project is written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from edgeq.errors import InternalError, ModelError, UsageError
from edgeq.exporters.base import FileOp, ReadBack
from edgeq.exporters.c.memory import memory_of
from edgeq.graph.integer import integer_config, integer_rules
from edgeq.graph.intgraph.file import load, save
from edgeq.graph.intgraph.graph import Conv, Depthwise, FullyConnected, MatMul, Op
from edgeq.graph.intgraph.lower import KERNELS, lower
from edgeq.graph.kinds import op_kind
from edgeq.graph.legalize import Legalized
from edgeq.graph.placement import is_floating
from edgeq.spec import Precision, QuantConfig, QuantPlan, TensorPlan, codes_hash


class CExporter:
    """Integers only. The file holds an `IntGraph`; `edgeq.exporters.c.project` writes the C of it."""

    name = "c"
    file_name = "model.intgraph"
    float_format = "onnx"
    rules = integer_rules(KERNELS)
    schemes = ("integer",)

    def config(self, scheme: str, precision: Precision) -> QuantConfig:
        """Products at the widths of `precision`, everything between in 16 bits.

        Raises:
            UsageError: EQ-U011 for another scheme than `integer`.
        """
        if scheme not in self.schemes:
            message, hint = f"C has no scheme {scheme!r}: every operation runs in integers", "leave --scheme out"
            raise UsageError(message, code="EQ-U011", place="--scheme", hint=hint)
        return integer_config(precision)

    def prepare(self, graph: fx.GraphModule) -> fx.GraphModule:
        """The graph as it is, once every operation has a kernel.

        Raises:
            ModelError: EQ-M601 names those that have none.
        """
        computing = [n for n in graph.graph.nodes if n.op == "call_function" and is_floating(n)]
        lacking = [n for n in computing if op_kind(n) not in KERNELS]
        if lacking:
            counts = Counter(op_kind(n) for n in lacking)
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
            first = str(lacking[0].meta.get("path") or lacking[0].name)
            raise ModelError(
                f"no integer kernel for {kinds}, first in {first}",
                code="EQ-M601",
                place=first,
                hint="change the model, or export for a target with a float unit: --device rpi",
            )
        return graph

    def emit(self, graph: fx.GraphModule, example: tuple[Tensor, ...], plan: QuantPlan | None, path: Path) -> None:
        """Lower a legalized graph and write its integers.

        Raises:
            ModelError: EQ-M500 to EQ-M502 name an operation that cannot run in integers or could overflow.
        """
        del example
        if plan is None:
            raise InternalError("integers have no float form", code="EQ-Z600")
        save(lower(graph, plan, "network"), path)

    def read_back(self, path: Path, legalized: Legalized | None) -> ReadBack:
        """Read the integers and compare the weights with the plan."""
        graph = load(path)
        planned = [] if legalized is None else legalized.plan.weights()
        found, extra = {}, []
        for op in graph.ops:
            if isinstance(op, (Conv, Depthwise, FullyConnected)):
                tensor = _planned(op, planned)
                if tensor is None:
                    extra.append(op.name)
                else:
                    found[tensor.name] = codes_in_plan_order(op).astype(np.int32)
        missing = tuple(tensor.name for tensor in planned if tensor.name not in found)
        ops = tuple(
            FileOp(i, type(op).__name__, op.output, macs(op), "int8", _bytes(op)) for i, op in enumerate(graph.ops)
        )
        return ReadBack(ops, found, missing, tuple(extra), memory=memory_of(graph))


def codes_in_plan_order(op: Conv | Depthwise | FullyConnected) -> NDArray[np.int64]:
    """Weights as the float network has them: `(outputs, inputs)` or `(outputs, inputs, kernel height, width)`."""
    codes = op.weights.codes
    if isinstance(op, FullyConnected):
        return codes
    if isinstance(op, Depthwise):
        return codes.T.reshape(-1, 1, *op.window.kernel)
    held = codes.reshape(len(codes), *op.window.kernel, -1)
    return np.ascontiguousarray(held.transpose(0, 3, 1, 2))


def _planned(op: Conv | Depthwise | FullyConnected, planned: list[TensorPlan]) -> TensorPlan | None:
    """The tensor of the plan with the very integers of `op`."""
    digest = codes_hash(codes_in_plan_order(op))
    return next((tensor for tensor in planned if tensor.codes_sha256 == digest), None)


def macs(op: Op) -> int:
    """Multiply-accumulates of an operation; 0 for everything but products."""
    if isinstance(op, (Conv, Depthwise)):
        rows, columns = op.window.output
        return rows * columns * int(op.weights.codes.size)
    if isinstance(op, FullyConnected):
        return op.rows * int(op.weights.codes.size)
    return op.batch * op.rows * op.inner * op.columns if isinstance(op, MatMul) else 0


def _bytes(op: Op) -> int:
    return op.weights.bytes if isinstance(op, (Conv, Depthwise, FullyConnected)) else 0
