"""Float weights of a .tflite file that its converter, in the dynamic mode, has quantized without being asked.

The mode holds for a whole file: beside the planned integers, every other layer's weight becomes 8-bit codes, too.
Kernels of float inputs choose by the type of the weight, so that float values in its place make a float layer. The
values are those of the same graph converted in float: the converter also multiplies what surrounds a layer into its
weight.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeq.exporters.tflite.flatbuffer import TfliteFile
from edgeq.graph.kinds import op_kind
from edgeq.spec import QuantPlan

_LAYERS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
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
    floats, file = TfliteFile.read(exact), TfliteFile.read(path)
    types = file.schema.TensorType
    found = [(t.shape, data) for _, t, data in floats.layer_weights(_LAYERS) if t.type == types.FLOAT32]
    left = [data.view(np.float32).reshape(shape) for shape, data in found]
    kept = {t.uniform.scale.tobytes() for t in plan.weights()}
    restored = 0
    for _, tensor, data in file.layer_weights(_LAYERS):
        if tensor.type == types.INT8 and tensor.quantization is not None:
            scales = np.asarray(tensor.quantization.scale, dtype=np.float32)
            if scales.tobytes() not in kept:
                restored += _restore(file, tensor, data.view(np.int8), scales, left)
    if restored:
        file.write(path)
    return restored


def _restore(
    file: TfliteFile, tensor: Any, codes: NDArray[np.int8], scales: NDArray[np.float32], left: list[NDArray[np.float32]]
) -> int:
    """Restore one weight if it is that of a float layer; whether it was."""
    codes = codes.reshape(tuple(int(d) for d in tensor.shape))
    along = [1] * codes.ndim
    along[tensor.quantization.quantizedDimension] = -1
    steps = scales.reshape(along)
    for values in left:
        if values.shape == codes.shape and bool((np.abs(values - codes * steps) <= _HALF * steps).all()):
            file.model.buffers[tensor.buffer].data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            tensor.type, tensor.quantization = file.schema.TensorType.FLOAT32, None
            return 1
    return 0
