"""What the lowering of one operation may ask: its operands, the grid of its result, its constants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from edgeq.errors import InternalError, ModelError
from edgeq.graph.intgraph.builder import Builder, Grid, Value
from edgeq.graph.kinds import op_kind
from edgeq.graph.rewrite import fetch
from edgeq.spec import QuantPlan

Reals = NDArray[np.float64]

MOVES = frozenset({"reshape", "flatten", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze"})
"""Operations that only move codes."""

CLIPS = frozenset({"relu", "relu6", "clamp", "hardtanh"})
LAYERS = frozenset({"linear", "conv2d"})


def refused(
    node: fx.Node, reason: str, hint: str = "export for a target with a float unit: --device rpi"
) -> ModelError:
    """The error for an operation that has no integer kernel."""
    place = str(node.meta.get("path") or node.name)
    message = f"{op_kind(node)} {node.name} ({place}) cannot run in integers: {reason}"
    return ModelError(message, code="EQ-M500", place=node.name, hint=hint)


@dataclass
class Context:
    """State of a lowering.

    Args:
        gm: What is lowered: the graph with its quantize/dequantize pairs.
        plan: Its plan.
        builder: What it becomes.
        values: Results so far, by node.
    """

    gm: fx.GraphModule
    plan: QuantPlan
    builder: Builder
    values: dict[fx.Node, Value] = field(default_factory=dict)

    def grid(self, node: fx.Node) -> Grid:
        """The grid of the result of `node`.

        Raises:
            ModelError: EQ-M500, it has none: the operation would run in float.
        """
        for user in node.users:
            if is_quantize(user):
                scale, zero_point, low, high, dtype = user.args[1:6]
                return Grid(float(scale), int(zero_point), int(low), int(high), dtype is torch.int16)  # type: ignore[arg-type]
        # An input that is moved before anything reads it has the grid of what it becomes.
        for user in node.users if node.op == "placeholder" or op_kind(node) in MOVES else ():
            if op_kind(user) in MOVES:
                return self.grid(user)
        raise refused(node, "its result is not on a grid")

    def source(self, node: fx.Node, index: int) -> fx.Node:
        """The node whose codes operand `index` of `node` reads.

        Raises:
            ModelError: EQ-M500, the operand is float.
        """
        operand = node.args[index] if index < len(node.args) else None
        if isinstance(operand, fx.Node):
            return self.behind(node, operand)
        raise refused(node, f"operand {index} is not a tensor")

    def behind(self, reader: fx.Node, operand: fx.Node) -> fx.Node:
        """The node whose codes `operand`, the end of a quantize/dequantize pair, stands for."""
        quantize = operand.args[0] if operand.args else None
        if operand in self.values and op_kind(reader) in MOVES:
            return operand  # an input, moved before it is quantized
        if not (isinstance(quantize, fx.Node) and is_quantize(quantize)):
            raise refused(reader, f"it reads {operand.name} in float")
        found = quantize.args[0]
        assert isinstance(found, fx.Node)
        return found

    def value(self, node: fx.Node, index: int) -> Value:
        """Operand `index` of `node`, a constant included."""
        return self.value_of(self.source(node, index))

    def value_of(self, source: fx.Node) -> Value:
        """What a node has become; a constant becomes a buffer."""
        if source not in self.values and source.op == "get_attr":
            codes, grid = self.codes(source)
            tensor = self.builder.constant(source.name, codes, grid)
            view = np.arange(codes.size, dtype=np.int64).reshape(codes.shape)
            return Value(tensor.name, view, grid)
        return self.values[source]

    def codes(self, constant: fx.Node) -> tuple[NDArray[np.int64], Grid]:
        """Codes of a constant on its grid."""
        grid = self.grid(constant)
        reals = fetch(self.gm, str(constant.target)).to(torch.float32)
        steps = torch.round(reals * (1.0 / grid.scale)) + grid.zero_point
        return steps.clamp(grid.low, grid.high).to(torch.int64).numpy(), grid

    def constant(self, node: fx.Node, index: int) -> Reals | None:
        """Operand `index` if it is a constant on a grid: its values there."""
        operand = node.args[index] if index < len(node.args) else None
        if not isinstance(operand, fx.Node):
            return None
        source = self.behind(node, operand)
        if source.op != "get_attr":
            return None
        codes, grid = self.codes(source)
        reals: Reals = (codes - grid.zero_point).astype(np.float64) * grid.scale
        return reals

    def float_constant(self, node: fx.Node, index: int) -> Reals | None:
        """Operand `index` if it is a constant without a grid, such as a bias."""
        operand = node.args[index] if index < len(node.args) else None
        if not (isinstance(operand, fx.Node) and operand.op == "get_attr"):
            return None
        reals: Reals = fetch(self.gm, str(operand.target)).double().numpy()
        return reals

    def carrier(self, node: fx.Node) -> fx.Node:
        """The node that carries the result's grid: `node`, or the activation that its kernel absorbs."""
        users = [user for user in node.users if is_absorbed(user)]
        return users[0] if users else node

    def check_weight(self, node: fx.Node, digest: str) -> None:
        """The integers of a layer must be those of the plan.

        Raises:
            InternalError: EQ-Z501, they are not.
        """
        operand = node.args[1]
        assert isinstance(operand, fx.Node)
        attribute = str(self.behind(node, operand).target)
        if self.plan.tensors[attribute].codes_sha256 != digest:
            raise InternalError(f"weights of {node.name} differ from the plan", code="EQ-Z501", place=node.name)

    def settled(self, node: fx.Node, index: int) -> Value:
        """Operand `index` as a whole buffer in some order of its axes, on its grid."""
        return self.builder.dense(self.value(node, index), node.name)

    def weight(self, node: fx.Node) -> tuple[NDArray[np.int64], Reals, int]:
        """Codes, scale of each output `(outputs,)` or `(1,)`, and width, of a layer's weight."""
        operand = node.args[1]
        quantize = operand.args[0] if isinstance(operand, fx.Node) and operand.args else None
        attribute = quantize.args[0] if isinstance(quantize, fx.Node) and quantize.args else None
        if not (isinstance(quantize, fx.Node) and isinstance(attribute, fx.Node) and attribute.op == "get_attr"):
            raise refused(node, "its weight is not a constant on a grid")
        plan = self.plan.tensors[str(attribute.target)]
        scale = np.atleast_1d(plan.uniform.scale).astype(np.float64)
        reals = fetch(self.gm, str(attribute.target)).double().numpy()
        codes = np.rint(reals / scale.reshape(-1, *[1] * (reals.ndim - 1))).astype(np.int64)
        return np.clip(codes, plan.uniform.spec.qmin, plan.uniform.spec.qmax), scale, plan.bits


def is_quantize(node: fx.Node) -> bool:
    """Whether `node` starts a quantize/dequantize pair."""
    return node.op == "call_function" and "quantized_decomposed.quantize" in str(node.target)


def is_dequantize(node: fx.Node) -> bool:
    """Whether `node` ends a quantize/dequantize pair."""
    return node.op == "call_function" and "quantized_decomposed.dequantize" in str(node.target)


def is_absorbed(node: fx.Node) -> bool:
    """Whether `node` is an activation that reads a layer without a pair between them: the layer's kernel does it."""
    source = node.args[0] if node.args else None
    return op_kind(node) in CLIPS and isinstance(source, fx.Node) and op_kind(source) in LAYERS


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the result of `node`."""
    value = node.meta.get("val")
    assert isinstance(value, Tensor)
    return tuple(int(size) for size in value.shape)


def arguments(node: fx.Node, first: int, **defaults: Any) -> dict[str, Any]:
    """The arguments of `node` from position `first` on, by position or by name, with what PyTorch assumes."""
    given = dict(zip(defaults, node.args[first:], strict=False))
    return {**defaults, **given, **node.kwargs}


def clip_bounds(node: fx.Node) -> tuple[float | None, float | None]:
    """Reals between which a ReLU, a clamp or a hardtanh keeps values."""
    if op_kind(node) == "relu":
        return 0.0, None
    if op_kind(node) == "relu6":
        return 0.0, 6.0
    low: Any
    high: Any
    if "clamp_max" in str(node.target):
        low, high = None, node.args[1]
    else:
        beyond = 1.0 if op_kind(node) == "hardtanh" else None
        limits = arguments(node, 1, low=None if beyond is None else -beyond, high=beyond)
        low, high = limits["low"], limits["high"]
    if any(not isinstance(limit, (int, float, type(None))) for limit in (low, high)):
        raise refused(node, "its limits are tensors")
    return low, high
