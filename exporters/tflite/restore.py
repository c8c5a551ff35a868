"""Float weights of a .tflite file that its converter, in the dynamic mode, has quantized without being asked.

The mode holds for a whole file: beside the planned integers, every other layer's weight becomes 8-bit codes, too.
Kernels of float inputs choose by the type of the weight, so that float values in its place make a float layer. The
values are those of the same graph converted in float: the converter also multiplies what surrounds a layer into its
weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeq.graph.kinds import op_kind
from edgeq.spec import QuantPlan

_LAYERS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
_WEIGHT_OPERAND = 1
_HALF = 0.51
"""Of a step: how far a value lies from its nearest code, and some."""

_RESTORED = (torch.ops.quantized_decomposed.dequantize_per_channel.default,)


def leaves_floats(graph: fx.GraphModule, plan: QuantPlan) -> bool:
    """Whether a plan in the scheme `dynamic` leaves a layer in float."""
    ops = (plan.ops.get(n.name) for n in graph.graph.nodes if op_kind(n) in ("linear", "conv2d"))
    return plan.scheme == "dynamic" and any(op is not None and op.mode == "float" for op in ops)


def without_weight_grids(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of an emission whose weights, which lie on their grids, are floats without quantize and dequantize."""
    result = copy.deepcopy(graph)
    for node in list(result.graph.nodes):
        if node.target in _RESTORED:
            node.replace_all_uses_with(node.args[0].args[0])
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


def restore_floats(path: Path, exact: Path, plan: QuantPlan) -> int:
    """Rewrite `path` so that the layers which the plan leaves in float have float weights.

    A weight is known by its values: it is the one that the codes are nearest to.

    Args:
        path: A .tflite file made in the dynamic mode; replaced.
        exact: The same graph in float, see `without_weight_grids`.
        plan: Its plan.

    Returns:
        Number of weights restored.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    float32 = schema.TensorType.FLOAT32
    floats = [(m.buffers[t.buffer].data, t.shape) for m, t in _weights(schema, exact) if t.type == float32]
    left = [np.asarray(data, np.uint8).view(np.float32).reshape(shape) for data, shape in floats]
    kept = {t.uniform.scale.tobytes() for t in plan.weights()}
    model, restored = None, 0
    for model, tensor in _weights(schema, path):
        if tensor.type == schema.TensorType.INT8 and tensor.quantization is not None:
            scales = np.asarray(tensor.quantization.scale, dtype=np.float32)
            if scales.tobytes() not in kept:
                restored += _restore(model, tensor, scales, left, float32)
    if model is not None and restored:
        builder = flatbuffers.Builder(path.stat().st_size)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
    return restored


def _weights(schema: Any, path: Path) -> Iterator[tuple[Any, Any]]:
    """The model of a file with each constant weight of its layers."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    for part in model.subgraphs:
        for op in part.operators:
            code = model.operatorCodes[op.opcodeIndex]
            if names[max(code.builtinCode, code.deprecatedBuiltinCode)] in _LAYERS:
                tensor = part.tensors[op.inputs[_WEIGHT_OPERAND]]
                if model.buffers[tensor.buffer].data is not None:
                    yield model, tensor


def _restore(
    model: Any, tensor: Any, scales: NDArray[np.float32], left: list[NDArray[np.float32]], float32: int
) -> int:
    """Restore one weight if it is that of a float layer; whether it was."""
    buffer = model.buffers[tensor.buffer]
    codes = np.asarray(buffer.data, dtype=np.uint8).view(np.int8).reshape(tuple(int(d) for d in tensor.shape))
    along = [1] * codes.ndim
    along[tensor.quantization.quantizedDimension] = -1
    steps = scales.reshape(along)
    for values in left:
        if values.shape == codes.shape and bool((np.abs(values - codes * steps) <= _HALF * steps).all()):
            buffer.data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            tensor.type, tensor.quantization = float32, None
            return 1
    return 0
