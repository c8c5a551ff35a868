"""INT4 weights in a .tflite file: two codes a byte, which the converter does not write by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.exporters.tflite.groups import add_buffer, grouped_weights, number_of, write_groups
from edgeq.spec import QuantPlan, codes_hash

_WEIGHT_OPERAND = 1


def pack_weights(path: Path, plan: QuantPlan) -> int:
    """Rewrite `path` so that the planned 4-bit weights of its fully connected layers take 4 bits each.

    With a scale per channel the arithmetic does not change: kernels widen the codes to 8 bits. Weights on groups get
    their scales, see `edgeq.exporters.tflite.groups`.

    Args:
        path: A .tflite file made from the plan's emission; replaced.
        plan: Its plan.

    Returns:
        Number of constants packed.
    """
    grouped = grouped_weights(plan)
    planned = {(t.codes_sha256, t.uniform.scale.tobytes()) for t in plan.weights() if t.bits == 4}
    if not planned:
        return 0
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    packed: dict[int, int] = {}  # equal codes of several weights are one buffer
    for graph in model.subgraphs:
        for tensor in _layer_weights(model, graph, schema):
            codes = _codes(model, tensor, schema.TensorType)
            if codes is None:
                continue
            held, digest = grouped.get(number_of(tensor)), codes_hash(codes.astype(np.int32))
            scales = np.asarray(tensor.quantization.scale, dtype=np.float32)
            if held is not None and digest == held.codes_sha256:
                write_groups(model, graph, tensor, held.uniform.scale, schema)
            elif (digest, scales.tobytes()) not in planned:
                continue
            if tensor.buffer not in packed:
                packed[tensor.buffer] = add_buffer(model, pack(codes), schema)
            tensor.buffer, tensor.type = packed[tensor.buffer], schema.TensorType.INT4
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    for index in set(packed) - used:
        model.buffers[index].data = None
    if packed:
        builder = flatbuffers.Builder(path.stat().st_size)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
    return len(packed)


def pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """4-bit codes as bytes, the first of each pair in the low half; an odd count ends with a zero."""
    flat = codes.reshape(-1).view(np.uint8)
    even = np.append(flat, np.uint8(0))[: flat.size + flat.size % 2] & np.uint8(0xF)
    result: NDArray[np.uint8] = even[0::2] | (even[1::2] << np.uint8(4))
    return result


def unpack(data: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """Inverse of `pack` for `count` codes."""
    halves = np.stack([data & 0xF, data >> 4], axis=1).reshape(-1)[:count]
    result: NDArray[np.int8] = ((halves.astype(np.int8) ^ 8) - 8).astype(np.int8)
    return result


def _layer_weights(model: Any, graph: Any, schema: Any) -> list[Any]:
    """The tensors that fully connected layers read as weights, each once."""
    found: dict[int, Any] = {}
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) == schema.BuiltinOperator.FULLY_CONNECTED:
            index = int(op.inputs[_WEIGHT_OPERAND])
            found[index] = graph.tensors[index]
    return list(found.values())


def _codes(model: Any, tensor: Any, types: Any) -> NDArray[np.int8] | None:
    """The codes of a constant in 8 bits on a grid; None for any other tensor."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != types.INT8 or data is None or tensor.quantization is None:
        return None
    return np.asarray(data, dtype=np.uint8).view(np.int8).reshape(tuple(int(d) for d in tensor.shape))
