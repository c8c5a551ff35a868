"""INT4 weights in a .tflite file: two codes a byte, which the converter does not write by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.spec import QuantPlan, codes_hash

_WEIGHT_OPERAND = 1


def pack_weights(path: Path, plan: QuantPlan) -> int:
    """Rewrite `path` so that the planned 4-bit weights of its fully connected layers take 4 bits each.

    The arithmetic does not change: kernels widen the codes to 8 bits.

    Args:
        path: A .tflite file made from the plan's emission; replaced.
        plan: Its plan.

    Returns:
        Number of weights packed.
    """
    planned = {(t.codes_sha256, t.uniform.scale.tobytes()) for t in plan.weights() if t.bits == 4}
    if not planned:
        return 0
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    packed = 0
    for graph in model.subgraphs:
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            if names[max(code.builtinCode, code.deprecatedBuiltinCode)] == "FULLY_CONNECTED":
                packed += _pack(model, graph.tensors[op.inputs[_WEIGHT_OPERAND]], schema.TensorType, planned)
    if packed:
        builder = flatbuffers.Builder(path.stat().st_size)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
    return packed


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


def _pack(model: Any, tensor: Any, types: Any, planned: set[tuple[str, bytes]]) -> int:
    """Pack one weight if it is a planned one; whether it was."""
    buffer = model.buffers[tensor.buffer]
    if tensor.type != types.INT8 or buffer.data is None or tensor.quantization is None:
        return 0
    codes = np.asarray(buffer.data, dtype=np.uint8).view(np.int8).reshape(tuple(int(d) for d in tensor.shape))
    scales = np.asarray(tensor.quantization.scale, dtype=np.float32)
    if (codes_hash(codes.astype(np.int32)), scales.tobytes()) not in planned:
        return 0
    buffer.data = pack(codes)
    tensor.type = types.INT4
    return 1
