"""From the legalized graph to the patterns that onnxruntime turns into integer kernels.

Measured with onnxruntime 1.31.1: a linear layer runs as QGEMM when it is a matrix product with an integer constant
`(inputs, outputs)` and its bias is an int32 constant behind a dequantization; with a float bias the product is fused
with the addition first and stays float. A convolution needs a quantized output as well. Activations are unsigned, as
the kernels want them: signed ones are converted at load, which fails on some graphs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeq.errors import ModelError
from edgeq.exporters.hard_activations import split_hard_activations
from edgeq.exporters.rewrite import hoist_relu, to_subpixel
from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import aten, axes_of, call, calls, fetch, prune, refresh, shape_of, supersede
from edgeq.spec import QuantPlan

_DECOMPOSED = torch.ops.quantized_decomposed
_Q_TENSOR = _DECOMPOSED.quantize_per_tensor.default
_DQ_TENSOR = _DECOMPOSED.dequantize_per_tensor.default
_Q_CHANNEL = _DECOMPOSED.quantize_per_channel.default
_DQ_CHANNEL = _DECOMPOSED.dequantize_per_channel.default
_UNSIGNED = 128  # from signed to unsigned 8-bit codes
_INT32 = (-(2**31), 2**31 - 1, torch.int32)


@torch.library.custom_op(
    "edgeq::dynamic_matmul", mutates_args=(), schema="(Tensor x, Tensor codes, Tensor scale) -> Tensor"
)
def dynamic_matmul(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Product of `x` `(..., I)`, quantized here to 8 bits by its range, and `codes` `(I, O)` with scales `(O,)`."""
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero = (-low / step).round()
    rounded = ((x / step).round() + zero).clamp(0, 255) - zero
    return (rounded.double() @ codes.double()).float() * (step * scale)


@dynamic_matmul.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[1]))


@dataclass(frozen=True)
class _Weight:
    """A quantized constant: codes in the layout of the plan, scales `(O,)`."""

    name: str
    codes: Tensor
    scale: Tensor


def prepare_onnx(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of `graph` in which transposed convolutions are sub-pixel convolutions, and ReLUs follow their layer.

    onnxruntime has no integer kernel for transposed convolutions. A ReLU vanishes in the quantization of a convolution,
    whose codes start at 0; behind a crop it would keep the convolution float.
    """
    prepared = copy.deepcopy(graph)
    for node in calls(prepared, aten.conv_transpose2d.input):
        to_subpixel(prepared, node)
    for node in calls(prepared, aten.relu.default):
        hoist_relu(prepared, node)
    split_hard_activations(prepared)
    refresh(prepared)
    for node in calls(prepared, aten.mean.dim):
        _pool(prepared, node)
    refresh(prepared)
    return rebuild(prepared)


def _pool(graph: fx.GraphModule, node: fx.Node) -> None:
    """Write the mean over an image as an average pool, which has an integer kernel."""
    source, axes, keep = (*node.args, False)[:3]
    if not isinstance(source, fx.Node) or len(shape_of(source)) != 4 or axes_of(axes, 4) != (2, 3):
        return
    pooled = call(graph, aten.avg_pool2d.default, source, list(shape_of(source)[2:]), before=node)
    if not keep:
        pooled = call(graph, aten.reshape.default, pooled, list(shape_of(source)[:2]), before=node)
    supersede(node, pooled)


def lower(emission: fx.GraphModule, plan: QuantPlan) -> fx.GraphModule:
    """A copy of a legalized graph with integer constants, in the patterns that have integer kernels.

    Args:
        emission: `Legalized.emission`.
        plan: Its plan.

    Raises:
        ModelError: EQ-M450 for activations that are not 8 bits wide.
    """
    for tensor in plan.tensors.values():
        if tensor.role == "activation" and tensor.bits != 8:
            raise ModelError(
                f"onnxruntime has no kernels for {tensor.bits}-bit activations",
                code="EQ-M450",
                place=tensor.name,
                hint="use --bits w8a8 or w4a8",
            )
    graph = copy.deepcopy(emission)
    for node in calls(graph, aten.linear.default, aten.conv2d.default):
        _lower_layer(graph, node)
    for node in calls(graph, _Q_TENSOR):
        _lower_activation(graph, node)
    for node in calls(graph, aten.hardtanh.default):
        _drop_clip(node)
    graph.graph.lint()
    graph.recompile()
    return graph


def _drop_clip(node: fx.Node) -> None:
    """Remove a clip whose result is quantized at once on a grid that ends no later: rounding clips as well.

    onnxruntime does so with ReLU by itself.
    """
    source, low, high = (*node.args, -1.0, 1.0)[:3]
    assert isinstance(source, fx.Node)
    for reader in node.users:
        if reader.target is not _Q_TENSOR:
            return
        scale, zero, least, most = reader.args[1:5]
        ends = [(end - zero) * scale for end in (least, most)]  # type: ignore[operator]
        if ends[0] < low - scale / 2 or ends[1] > high + scale / 2:  # type: ignore[operator]
            return
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _lower_layer(graph: fx.GraphModule, node: fx.Node) -> None:
    """Give a layer whose weight is quantized integer constants."""
    weight = _weight(graph, node.args[1])
    if weight is None:
        return
    source = node.args[0]
    bias = node.args[2] if len(node.args) > 2 else None
    assert isinstance(source, fx.Node)
    scale = float(source.args[1]) if source.target is _DQ_TENSOR else None  # type: ignore[arg-type]
    old = [a for a in (node.args[1], bias) if isinstance(a, fx.Node)]
    with graph.graph.inserting_before(node):
        if scale is not None and isinstance(bias, fx.Node):
            bias = _integer_bias(graph, weight, fetch(graph, str(bias.target)), scale)
        if node.target is aten.conv2d.default:
            node.args = (source, _dequantized(graph, weight.name, weight.codes, weight.scale, 0), bias, *node.args[3:])
        else:
            node.replace_all_uses_with(_product(graph, node, source, weight, bias, scale is not None))
            graph.graph.erase_node(node)
    prune(*old)


def _product(
    graph: fx.GraphModule, node: fx.Node, source: fx.Node, weight: _Weight, bias: object, static: bool
) -> fx.Node:
    """A linear layer as product and addition; returns the last."""
    codes = weight.codes.t().contiguous()
    if static:
        operand = _dequantized(graph, weight.name, codes, weight.scale, 1)
        result = graph.graph.call_function(aten.matmul.default, (source, operand))
    else:
        constants = [_constant(graph, f"{weight.name}_{k}", v) for k, v in (("codes", codes), ("scales", weight.scale))]
        result = graph.graph.call_function(torch.ops.edgeq.dynamic_matmul.default, (source, *constants))
    result.meta = dict(node.meta)
    if not isinstance(bias, fx.Node):
        return result
    total = graph.graph.call_function(aten.add.Tensor, (result, bias))
    total.meta = dict(node.meta)
    return total


def _weight(graph: fx.GraphModule, node: object) -> _Weight | None:
    """The codes and scales behind a quantize/dequantize pair on a constant; None for anything else."""
    if not isinstance(node, fx.Node) or node.target not in (_DQ_CHANNEL, _DQ_TENSOR):
        return None
    quantize = node.args[0]
    assert isinstance(quantize, fx.Node)
    source = quantize.args[0]
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    value = fetch(graph, str(source.target)).float()
    name = str(source.target).replace(".", "_")
    if node.target is _DQ_CHANNEL:
        scale, zero, axis, low, high, dtype = quantize.args[1:7]
        scales, zeros = fetch(graph, str(scale.target)), fetch(graph, str(zero.target))  # type: ignore[union-attr]
        codes = _DECOMPOSED.quantize_per_channel(value, scales, zeros, axis, low, high, dtype)
        return _Weight(name, codes, scales.float())
    codes = _Q_TENSOR(value, *quantize.args[1:])
    scales = torch.full((value.shape[0],), float(quantize.args[1]))  # type: ignore[arg-type]
    return _Weight(name, codes, scales)


def _integer_bias(graph: fx.GraphModule, weight: _Weight, bias: Tensor, scale: float) -> fx.Node:
    """The bias on the grid of the accumulator, as the kernels add it."""
    steps = (torch.tensor(scale) * weight.scale).float()
    codes = (bias.double() / steps.double()).round().clamp(*_INT32[:2]).to(torch.int32)
    return _dequantized(graph, f"{weight.name}_bias", codes, steps, 0)


def _dequantized(graph: fx.GraphModule, name: str, codes: Tensor, scale: Tensor, axis: int) -> fx.Node:
    """A dequantization of integer constants, with one scale for each index of `axis`."""
    low, high, dtype = _INT32 if codes.dtype == torch.int32 else (-128, 127, torch.int8)
    zero = torch.zeros(scale.shape, dtype=dtype)
    nodes = [_constant(graph, f"{name}_{k}", v) for k, v in (("codes", codes), ("scales", scale), ("zeros", zero))]
    return graph.graph.call_function(_DQ_CHANNEL, (*nodes, axis, low, high, dtype))


def _constant(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """A constant node; one that is there already under this name serves again if it is equal."""
    number, wanted = 0, name
    while hasattr(graph, name) and not _same(getattr(graph, name), value):
        number += 1
        name = f"{wanted}_{number}"
    if not hasattr(graph, name):
        graph.register_buffer(name, value)
    return graph.graph.get_attr(name)


def _same(first: object, second: Tensor) -> bool:
    return isinstance(first, Tensor) and first.dtype == second.dtype and torch.equal(first, second)


def _lower_activation(graph: fx.GraphModule, node: fx.Node) -> None:
    """Unsigned codes for an activation; a constant is quantized here and now."""
    source, scale, zero, low, high, _ = node.args
    assert isinstance(source, fx.Node)
    grid = (scale, int(zero) + _UNSIGNED, int(low) + _UNSIGNED, int(high) + _UNSIGNED, torch.uint8)  # type: ignore[arg-type]
    readers = list(node.users)
    with graph.graph.inserting_before(node):
        if source.op == "get_attr":
            codes = _Q_TENSOR(fetch(graph, str(source.target)), *grid)
            quantized = _constant(graph, f"{source.target}_codes".replace(".", "_"), codes)
        else:
            quantized = graph.graph.call_function(_Q_TENSOR, (source, *grid))
    for reader in readers:
        reader.args = (quantized, *grid)
    prune(node)
