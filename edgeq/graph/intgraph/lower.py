"""From the legalized everything-integer graph to an `IntGraph`.

The graph to lower carries a quantize/dequantize pair behind every tensor (`edgeq.recipe.place_integer`); what lies
between two pairs becomes one integer operation. Every sum, product and shift is bounded here from the codes that its
operands can hold, so that no input whatever overflows at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import fx

from edgeq.graph.intgraph.builder import Builder, Value, positions
from edgeq.graph.intgraph.context import (
    CLIPS,
    MOVES,
    Context,
    is_absorbed,
    is_dequantize,
    is_quantize,
    refused,
    shape_of,
)
from edgeq.graph.intgraph.graph import IntGraph, Port
from edgeq.graph.intgraph.pointwise import (
    lower_clip,
    lower_concat,
    lower_mean,
    lower_norm,
    lower_pool,
    lower_repeat,
    lower_scale,
    lower_softmax,
    lower_sum,
    lower_table,
)
from edgeq.graph.intgraph.products import IMAGE, lower_conv, lower_linear, lower_matmul
from edgeq.graph.kinds import op_kind
from edgeq.spec import QuantPlan

Lowering = Callable[[Context, fx.Node], Value]

TABLES = ("gelu", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid", "elu", "leaky_relu", "softplus", "mish")

LOWERINGS: Mapping[str, Lowering] = MappingProxyType(
    {
        "linear": lower_linear,
        "conv2d": lower_conv,
        "matmul": lower_matmul,
        "add": lower_sum,
        "sub": lower_sum,
        "mul": lower_scale,
        "softmax": lower_softmax,
        "layer_norm": lower_norm,
        "rms_norm": lower_norm,
        "mean": lower_mean,
        "adaptive_avg_pool2d": lower_pool,
        "avg_pool2d": lower_pool,
        "max_pool2d": lower_pool,
        "upsample_nearest2d": lower_repeat,
        "cat": lower_concat,
        **dict.fromkeys(CLIPS, lower_clip),
        **dict.fromkeys(TABLES, lower_table),
    }
)
"""How each kind of operation is lowered; what only moves codes is in `MOVES`."""


KERNELS = frozenset(LOWERINGS) | MOVES
"""Kinds of operations that become integers."""


def lower(emission: fx.GraphModule, plan: QuantPlan, name: str) -> IntGraph:
    """The integers of a legalized graph.

    Args:
        emission: Of `legalize` with a placement by `integer_rules`, captured for one sample.
        plan: Likewise.
        name: Of the model.

    Raises:
        ModelError: EQ-M500 names an operation that has no integer kernel, EQ-M501 a layer in which a value could
            overflow, EQ-M502 a rearrangement with too many axes.
    """
    context = Context(emission, plan, Builder(name))
    inputs: list[Port] = []
    outputs: list[Port] = []
    for node in emission.graph.nodes:
        if node.op == "placeholder":
            inputs.append(_input(context, node))
        elif node.op == "output":
            taken = {port.tensor for port in inputs} | set(context.builder.constants)
            for operand in node.args[0]:
                outputs.append(_output(context, node, operand, taken))
                taken.add(outputs[-1].tensor)
        elif node.op == "call_function" and not is_quantize(node) and not is_dequantize(node):
            context.values[node] = _operation(context, node)
    return context.builder.finish(inputs, outputs)


def _input(context: Context, node: fx.Node) -> Port:
    shape, grid = shape_of(node), context.grid(node)
    order = IMAGE if len(shape) == 4 else tuple(range(len(shape)))
    held = [shape[axis] for axis in order]
    tensor = context.builder.new(node.name, held, grid)
    context.values[node] = Value(tensor.name, positions(held).transpose(np.argsort(order)), grid)
    return Port(tensor.name, shape, order)


def _output(context: Context, node: fx.Node, operand: Any, taken: set[str]) -> Port:
    """An output in a buffer of its own: `taken` belong to the caller, or are constant."""
    value = context.value_of(context.behind(node, operand))
    shape = value.view.shape
    order = tuple(sorted(range(len(shape)), key=lambda axis: -abs(value.view.strides[axis])))
    natural = tuple(range(len(shape)))
    order = natural if len(shape) != 4 else order
    tensor = context.builder.demand(value, order, "output")
    return Port(context.builder.copied(tensor) if tensor in taken else tensor, shape, order)


def _operation(context: Context, node: fx.Node) -> Value:
    kind = op_kind(node)
    if is_absorbed(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return context.values[source]
    if kind in MOVES:
        return _move(context, node)
    if kind not in LOWERINGS:
        known = ", ".join(sorted([*LOWERINGS, *MOVES]))
        raise refused(node, f"there is no kernel for it (there are: {known})")
    return LOWERINGS[kind](context, node)


def _move(context: Context, node: fx.Node) -> Value:
    """Codes in other places: a view, as long as one exists."""
    value, grid = context.value(node, 0), context.grid(node)
    if value.grid != grid and not context.builder.settled(value):
        value = context.builder.dense(value, node.name)
    view = _seen(node, value.view)
    if not np.shares_memory(view, value.view):
        tensor = context.builder.demand(value, place=node.name)
        value = Value(tensor, positions(value.view.shape), value.grid)
        view = _seen(node, value.view)
    return Value(value.tensor, view, grid if not value.grid.holds(grid) else value.grid, value.factor)


def _seen(node: fx.Node, view: Any) -> Any:
    """The view that a movement makes of another one."""
    kind = op_kind(node)
    args: list[Any] = list(node.args[1:])
    if kind in ("reshape", "flatten", "unsqueeze", "squeeze"):
        return view.reshape(shape_of(node))
    if kind == "transpose":
        return view.swapaxes(int(args[0]), int(args[1]))
    if kind == "permute":
        return view.transpose([int(a) for a in args[0]])
    axis = int(args[0]) if args else 0
    if kind == "select":
        return np.moveaxis(view, axis, 0)[int(args[1])]
    start, end, step = [*args[1:], None, None, None][:3]
    index = [slice(None)] * view.ndim
    index[axis] = slice(start, end, step)
    return view[tuple(index)]
