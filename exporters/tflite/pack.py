"""INT4 weights in a .tflite file: two codes a byte, which the converter does not write by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeq.exporters.tflite.flatbuffer import TfliteFile
from edgeq.exporters.tflite.groups import add_buffer, grouped_weights, number_of, write_groups
from edgeq.spec import QuantPlan, codes_hash


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
    file = TfliteFile.read(path)
    model, schema = file.model, file.schema
    packed: dict[int, int] = {}  # equal codes of several weights are one buffer
    for graph, tensor, data in list(file.layer_weights(("FULLY_CONNECTED",))):
        if tensor.type != schema.TensorType.INT8 or tensor.quantization is None:
            continue
        codes = data.view(np.int8).reshape(tuple(int(d) for d in tensor.shape))
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
        file.write(path)
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
