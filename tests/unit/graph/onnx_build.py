"""Small ONNX files for the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}


def build(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray[Any, Any]] | None = None,
    opset: int = 18,
    types: Mapping[str, str] | None = None,
    metadata: bool = True,
) -> Path:
    """Write a model; `types` gives the types of inputs that are not float32."""
    types = types or {}
    constants = constants or {}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, TYPES[types.get(n, "float32")], list(s)) for n, s in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if metadata:
        model = onnx.shape_inference.infer_shapes(model)
        for output in model.graph.output:
            if not output.type.HasField("tensor_type"):
                shape = [None] * len(next(iter(inputs.values())))
                output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape))
    onnx.save(model, path)
    return path


def node(op: str, inputs: str, outputs: str = "y", **attributes: object) -> onnx.NodeProto:
    """A node; inputs and outputs as words, `_` for an absent one."""
    read = ["" if i == "_" else i for i in inputs.split()]
    return helper.make_node(op, read, outputs.split(), name=f"{op}_{outputs.split()[0]}", **attributes)
