"""Weights on groups of a row, which LiteRT runs and its converter does not know.

The converter is given the codes themselves as a weight, on a grid whose step is the weight's number in the plan. It
writes them as they are, and once where a table and a layer share them; the number tells which weight they are.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeq.graph.legalize import WEIGHT_PATH
from edgeq.graph.rewrite import aten, call, fetch
from edgeq.spec import PerGroup, QuantPlan, TensorPlan

LEAST_VERSION = 14
"""Of FULLY_CONNECTED where a file has groups. Kernels look at the grid only, whatever the version; runtimes before
ai-edge-litert 2.1, which know no version 14, would compute something else or crash (1.2, 1.4, 2.0; 1.3 would not)."""

_Q_CHANNEL = torch.ops.quantized_decomposed.quantize_per_channel.default
_DQ_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default
_ENDS = (-127, 127)


def grouped_weights(plan: QuantPlan) -> dict[int, TensorPlan]:
    """The weights on groups by their number, from 1 on."""
    found = [t for t in plan.weights() if isinstance(t.uniform.spec.granularity, PerGroup)]
    return dict(enumerate(found, start=1))


def hold_codes(graph: fx.GraphModule, plan: QuantPlan) -> fx.GraphModule:
    """What the converter is given for an emission: a copy in which weights on groups are their codes.

    Args:
        graph: Emission, where the codes of such a weight are multiplied by their scales.
        plan: Its plan.
    """
    numbers = {tensor.name: number for number, tensor in grouped_weights(plan).items()}
    if not numbers:
        return graph
    result = copy.deepcopy(graph)
    first = next(n for n in result.graph.nodes if n.op == "call_function")
    held: dict[str, fx.Node] = {}
    for node in [n for n in result.graph.nodes if n.meta.get(WEIGHT_PATH) in numbers]:
        path, source, rows = node.meta[WEIGHT_PATH], node, None
        while source.op != "get_attr":
            rows = source.args[2] if source.target is aten.index_select.default else rows
            source = source.args[0]
        if path not in held:
            codes = fetch(result, str(source.target)).flatten(1)
            held[path] = _constant(result, path, codes, numbers[path], first)
        weight = held[path]
        if rows is not None:  # a table
            picked = call(result, aten.embedding.default, weight, rows, before=node)
            weight = call(result, aten.reshape.default, picked, node.args[1], before=node)
        node.replace_all_uses_with(weight)
    result.graph.eliminate_dead_code()
    result.graph.lint()
    result.recompile()
    return result


def _constant(graph: fx.GraphModule, path: str, codes: torch.Tensor, number: int, before: fx.Node) -> fx.Node:
    """Codes on a grid whose step is `number`, `(rows, columns)`."""
    stem = f"{path.replace('.', '_')}_held"
    scale = torch.full((len(codes),), float(number))
    values = {"": codes.float() * number, "_step": scale, "_zero": torch.zeros(len(codes), dtype=torch.int64)}
    for suffix, value in values.items():
        graph.register_buffer(stem + suffix, value)
    with graph.graph.inserting_before(before):
        weight, step, zero = (graph.graph.get_attr(stem + suffix) for suffix in values)
        grid = (step, zero, 0, *_ENDS, torch.int8)
        quantized = graph.graph.call_function(_Q_CHANNEL, (weight, *grid))
        return graph.graph.call_function(_DQ_CHANNEL, (quantized, *grid))


def number_of(tensor: Any) -> int:
    """The number that the step of an int8 tensor of a file says; 0 when it says none."""
    steps = np.unique(np.asarray(tensor.quantization.scale, np.float32))
    return int(steps[0]) if len(steps) == 1 and steps[0] == int(steps[0]) else 0


def write_groups(model: Any, graph: Any, tensor: Any, scales: NDArray[np.float32], schema: Any) -> None:
    """Give a tensor of a file a grid of groups.

    Args:
        model: The file.
        graph: Its subgraph, which gets a tensor of scales.
        tensor: Of `graph`, with codes in 4 bits.
        scales: `(rows, groups)`, numbers of float16.
        schema: The file's schema.
    """
    held = schema.TensorT()
    held.name = tensor.name + b"_scales"
    held.shape, held.type = np.array(scales.shape, np.int32), schema.TensorType.FLOAT16
    held.buffer = add_buffer(model, np.frombuffer(scales.astype(np.float16).tobytes(), np.uint8), schema)
    graph.tensors.append(held)
    details = schema.BlockwiseQuantizationT()
    details.scales, details.zeroPoints = len(graph.tensors) - 1, -1
    details.blockSize = int(tensor.shape[1]) // scales.shape[1]
    grid = schema.QuantizationParametersT()
    grid.detailsType, grid.details = schema.QuantizationDetails.BlockwiseQuantization, details
    grid.quantizedDimension = 0
    tensor.quantization = grid
    for code in model.operatorCodes:
        if max(code.builtinCode, code.deprecatedBuiltinCode) == schema.BuiltinOperator.FULLY_CONNECTED:
            code.version = max(code.version, LEAST_VERSION)


def add_buffer(model: Any, data: NDArray[np.uint8], schema: Any) -> int:
    """Add a constant to a file; its number."""
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def groups_of(model: Any, graph: Any, tensor: Any, schema: Any) -> NDArray[np.float32] | None:
    """Scales `(rows, groups)` of a tensor of a file; None where it has no groups."""
    grid = tensor.quantization
    if grid is None or grid.detailsType != schema.QuantizationDetails.BlockwiseQuantization:
        return None
    held = graph.tensors[grid.details.scales]
    scales = np.asarray(model.buffers[held.buffer].data, np.uint8).view(np.float16)
    result: NDArray[np.float32] = scales.astype(np.float32).reshape(tuple(int(n) for n in held.shape))
    return result
