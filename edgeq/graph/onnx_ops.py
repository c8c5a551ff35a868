"""ONNX operators as plain PyTorch: what an operator is given, the table, and elementwise and reducing operators.

A builder gets an `OnnxNode` (attributes, constant inputs, static shapes) and returns a function of the node's tensor
inputs. Whatever ONNX passes as a tensor but PyTorch wants as a number (axes, shapes, pads) the builder turns into
Python values, so that the traced graph holds no shape arithmetic. Semantics follow the operator specification of ONNX,
opsets 7 to 23: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeq.errors import ModelError

Function = Callable[..., Any]
Builder = Callable[["OnnxNode"], Function]
Operand = Any  # a tensor or a number, at least one of two a tensor

OPERATORS: dict[str, Builder] = {}


@dataclass(frozen=True)
class OnnxNode:
    """One node of an ONNX graph with everything about it that is fixed.

    Args:
        op_type: Operator.
        name: Node name, possibly empty.
        inputs: Names of the inputs; an empty name is an absent input.
        outputs: Names of the outputs.
        attributes: Decoded attributes.
        constants: Value of each input that is constant, None for the others.
        shapes: Shape of each input, None where it is absent.
        dtypes: Type of each input, None where it is absent.
        opset: Version of the operator set.
    """

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    constants: tuple[Tensor | None, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[torch.dtype | None, ...]
    opset: int

    @property
    def place(self) -> str:
        """Where the node stands, for messages."""
        return describe(self.op_type, self.name, self.inputs, self.outputs)

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Shape of input `index`."""
        shape = self.shapes[index] if self.has(index) else None
        if shape is None:
            raise self.refuse(f"input {index} is missing")
        return shape

    def rank(self, index: int = 0) -> int:
        """Number of axes of input `index`."""
        return len(self.shape(index))

    def attr(self, name: str, default: object = None) -> Any:
        """Attribute `name`, or `default`."""
        return self.attributes.get(name, default)

    def constant(self, index: int) -> Tensor:
        """Constant input `index`.

        Raises:
            ModelError: The input is computed by the network.
        """
        value = self.constants[index] if index < len(self.constants) else None
        if value is None:
            name = self.inputs[index] if index < len(self.inputs) else f"number {index}"
            raise self.refuse(f"input {name!r} is computed from the data; edgeq needs it constant")
        return value

    def ints(self, index: int, attribute: str | None = None) -> list[int] | None:
        """Integers from the constant input `index` or else from `attribute`; None when neither is given."""
        if self.has(index):
            return [int(v) for v in self.constant(index).reshape(-1).tolist()]
        value = self.attr(attribute) if attribute else None
        return None if value is None else [int(v) for v in value]

    def axis(self, value: int, rank: int | None = None) -> int:
        """`value` counted from the front."""
        rank = self.rank() if rank is None else rank
        if not -rank <= value < max(rank, 1):
            raise self.refuse(f"axis {value} is outside a tensor of {rank} axes")
        return value % rank if rank else 0

    def refuse(self, reason: str) -> ModelError:
        """The error for a node that cannot be imported."""
        hint = "export the model with other options, or replace the operation in the model"
        return ModelError(f"{self.op_type} cannot be imported: {reason}", code="EQ-M113", place=self.place, hint=hint)


def describe(op_type: str, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """A node's place in the graph in words."""
    reads = ", ".join(i for i in inputs if i) or "nothing"
    return f"{op_type} {name or '(unnamed)'}: {reads} -> {', '.join(o for o in outputs if o)}"


def operator(*names: str) -> Callable[[Builder], Builder]:
    """Register a builder under operator names."""

    def add(builder: Builder) -> Builder:
        OPERATORS.update(dict.fromkeys(names, builder))
        return builder

    return add


def _scalars(node: OnnxNode) -> list[float | int | None]:
    """For each input its value as a Python number when it is a constant of one element that broadcasts away."""
    widest = max((len(s) for s in node.shapes if s is not None), default=0)
    result: list[float | int | None] = []
    for value in node.constants:
        usable = value is not None and value.numel() == 1 and value.dim() <= widest and value.dtype != torch.bool
        result.append(value.reshape(()).item() if usable and value is not None else None)
    return result


def _binary(compute: Callable[[Any, Any], Tensor]) -> Builder:
    """A builder of a two-operand operator; one-element constants become Python numbers."""

    def build(node: OnnxNode) -> Function:
        left, right = (*_scalars(node), None)[:2]
        if right is not None and node.constants[0] is None:
            return lambda a, b: compute(a, right)
        if left is not None and node.constants[1] is None:
            return lambda a, b: compute(left, b)
        return compute

    return build


def _divide(a: Operand, b: Operand) -> Tensor:
    """ONNX division: integers truncate towards zero."""
    whole = all(isinstance(v, int) or (isinstance(v, Tensor) and not v.is_floating_point()) for v in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


def _subtract(a: Operand, b: Operand) -> Tensor:
    """Difference that also takes a number on the left."""
    return torch.rsub(b, a) if not isinstance(a, Tensor) else torch.sub(a, b)


def _reciprocal_times(a: Operand, b: Operand) -> Tensor:
    """Quotient that also takes a number on the left."""
    if isinstance(a, Tensor) or not b.is_floating_point():
        return _divide(a, b)
    return torch.reciprocal(b) if a == 1 else torch.reciprocal(b) * a


OPERATORS.update(
    {
        "Add": _binary(lambda a, b: torch.add(b, a) if not isinstance(a, Tensor) else torch.add(a, b)),
        "Sub": _binary(_subtract),
        "Mul": _binary(lambda a, b: torch.mul(b, a) if not isinstance(a, Tensor) else torch.mul(a, b)),
        "Div": _binary(_reciprocal_times),
        "Pow": _binary(torch.pow),
        "Equal": _binary(lambda a, b: torch.eq(b, a) if not isinstance(a, Tensor) else torch.eq(a, b)),
        "Less": _binary(lambda a, b: torch.gt(b, a) if not isinstance(a, Tensor) else torch.lt(a, b)),
        "Greater": _binary(lambda a, b: torch.lt(b, a) if not isinstance(a, Tensor) else torch.gt(a, b)),
        "LessOrEqual": _binary(lambda a, b: torch.ge(b, a) if not isinstance(a, Tensor) else torch.le(a, b)),
        "GreaterOrEqual": _binary(lambda a, b: torch.le(b, a) if not isinstance(a, Tensor) else torch.ge(a, b)),
        "And": lambda _: torch.logical_and,
        "Or": lambda _: torch.logical_or,
        "Xor": lambda _: torch.logical_xor,
        "Not": lambda _: torch.logical_not,
        "Where": lambda _: torch.where,
        "Relu": lambda _: torch.relu,
        "Sigmoid": lambda _: torch.sigmoid,
        "Tanh": lambda _: torch.tanh,
        "Erf": lambda _: torch.erf,
        "Exp": lambda _: torch.exp,
        "Log": lambda _: torch.log,
        "Sqrt": lambda _: torch.sqrt,
        "Abs": lambda _: torch.abs,
        "Neg": lambda _: torch.neg,
        "Floor": lambda _: torch.floor,
        "Ceil": lambda _: torch.ceil,
        "Round": lambda _: torch.round,
        "Reciprocal": lambda _: torch.reciprocal,
        "Sign": lambda _: torch.sign,
        "Sin": lambda _: torch.sin,
        "Cos": lambda _: torch.cos,
        "Tan": lambda _: torch.tan,
        "Asin": lambda _: torch.asin,
        "Acos": lambda _: torch.acos,
        "Atan": lambda _: torch.atan,
        "Sinh": lambda _: torch.sinh,
        "Cosh": lambda _: torch.cosh,
        "Softplus": lambda _: functional.softplus,
        "Softsign": lambda _: functional.softsign,
        "Mish": lambda _: functional.mish,
        "HardSwish": lambda _: functional.hardswish,
        "IsNaN": lambda _: torch.isnan,
        "Identity": lambda _: lambda x: x,
        "Max": lambda _: lambda *xs: functools.reduce(torch.maximum, xs),
        "Min": lambda _: lambda *xs: functools.reduce(torch.minimum, xs),
        "Sum": lambda _: lambda *xs: functools.reduce(torch.add, xs),
        "Mean": lambda _: lambda *xs: functools.reduce(torch.add, xs) / len(xs),
        "Elu": lambda n: functools.partial(functional.elu, alpha=n.attr("alpha", 1.0)),
        "Celu": lambda n: functools.partial(functional.celu, alpha=n.attr("alpha", 1.0)),
        "LeakyRelu": lambda n: functools.partial(functional.leaky_relu, negative_slope=n.attr("alpha", 0.01)),
    }
)


@operator("Mod")
def _mod(node: OnnxNode) -> Function:
    return torch.fmod if node.attr("fmod", 0) else torch.remainder


@operator("Selu")
def _selu(node: OnnxNode) -> Function:
    alpha = float(node.attr("alpha", 1.6732631921768188))
    gamma = float(node.attr("gamma", 1.0507010221481323))
    return lambda x: gamma * functional.elu(x, alpha=alpha)


@operator("ThresholdedRelu")
def _thresholded_relu(node: OnnxNode) -> Function:
    alpha = float(node.attr("alpha", 1.0))
    return lambda x: functional.threshold(x, alpha, 0.0)


@operator("HardSigmoid")
def _hard_sigmoid(node: OnnxNode) -> Function:
    alpha, beta = float(node.attr("alpha", 0.2)), float(node.attr("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("Swish")
def _swish(node: OnnxNode) -> Function:
    alpha = float(node.attr("alpha", 1.0))
    return functional.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(x * alpha)


@operator("Gelu")
def _gelu(node: OnnxNode) -> Function:
    return functools.partial(functional.gelu, approximate=node.attr("approximate", "none"))


@operator("Clip")
def _clip(node: OnnxNode) -> Function:
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = node.constant(index).item() if node.has(index) else node.attr(name)
        bounds.append(value)
    low, high = bounds
    if low is None and high is None:
        return lambda x, *_: x
    if (low, high) == (0.0, 6.0) and node.dtypes[0] == torch.float32:
        return lambda x, *_: functional.hardtanh(x, 0.0, 6.0)
    return lambda x, *_: torch.clamp(x, low, high)


@operator("PRelu")
def _prelu(node: OnnxNode) -> Function:
    shape, slope = node.shape(0), node.shape(1)
    count = 1
    for size in slope:
        count *= size
    channel = slope[len(slope) - (len(shape) - 1)] if len(slope) >= len(shape) - 1 > 0 else 0
    if count == 1 or (len(shape) > 1 and count == channel == shape[1]):
        return lambda x, s: functional.prelu(x, s.reshape(-1))
    return lambda x, s: torch.relu(x) - s * torch.relu(-x)


@operator("Softmax", "LogSoftmax")
def _softmax(node: OnnxNode) -> Function:
    compute = functional.softmax if node.op_type == "Softmax" else functional.log_softmax
    rank, shape = node.rank(), node.shape()
    axis = node.axis(int(node.attr("axis", -1 if node.opset >= 13 else 1)))
    if node.opset >= 13 or axis == rank - 1:
        return lambda x: compute(x, dim=axis)
    # Before opset 13 all axes from `axis` on were one.
    return lambda x: compute(x.flatten(axis), dim=-1).reshape(shape)


def _reduce(compute: Callable[[Tensor, list[int], bool], Tensor]) -> Builder:
    """A builder of a reduction: axes from input or attribute, `keepdims`, `noop_with_empty_axes`."""

    def build(node: OnnxNode) -> Function:
        axes = node.ints(1, "axes")
        keep = bool(node.attr("keepdims", 1))
        if not axes:
            if node.attr("noop_with_empty_axes", 0):
                return lambda x, *_: x
            axes = list(range(node.rank()))
        chosen = [node.axis(a) for a in axes]
        return lambda x, *_: compute(x, chosen, keep)

    return build


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keep)
    return x


OPERATORS.update(
    {
        "ReduceMean": _reduce(lambda x, a, k: torch.mean(x, dim=a, keepdim=k)),
        "ReduceSum": _reduce(lambda x, a, k: torch.sum(x, dim=a, keepdim=k)),
        "ReduceMax": _reduce(lambda x, a, k: torch.amax(x, dim=a, keepdim=k)),
        "ReduceMin": _reduce(lambda x, a, k: torch.amin(x, dim=a, keepdim=k)),
        "ReduceProd": _reduce(_product),
        "ReduceL1": _reduce(lambda x, a, k: torch.sum(torch.abs(x), dim=a, keepdim=k)),
        "ReduceL2": _reduce(lambda x, a, k: torch.sqrt(torch.sum(x * x, dim=a, keepdim=k))),
        "ReduceSumSquare": _reduce(lambda x, a, k: torch.sum(x * x, dim=a, keepdim=k)),
        "ReduceLogSum": _reduce(lambda x, a, k: torch.log(torch.sum(x, dim=a, keepdim=k))),
        "ReduceLogSumExp": _reduce(lambda x, a, k: torch.logsumexp(x, dim=a, keepdim=k)),
    }
)


@operator("ArgMax", "ArgMin")
def _arg(node: OnnxNode) -> Function:
    compute = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    axis, keep = node.axis(int(node.attr("axis", 0))), bool(node.attr("keepdims", 1))
    if node.attr("select_last_index", 0):
        raise node.refuse("select_last_index is not supported")
    return lambda x: compute(x, dim=axis, keepdim=keep)


@operator("TopK")
def _top_k(node: OnnxNode) -> Function:
    count = int(node.constant(1).reshape(()).item()) if node.has(1) else int(node.attr("k"))
    axis, largest = node.axis(int(node.attr("axis", -1))), bool(node.attr("largest", 1))
    ordered = bool(node.attr("sorted", 1))
    return lambda x, *_: tuple(torch.topk(x, count, dim=axis, largest=largest, sorted=ordered))


@operator("CumSum")
def _cumulative_sum(node: OnnxNode) -> Function:
    axis = node.axis(int(node.constant(1).reshape(()).item()))
    exclusive, backwards = bool(node.attr("exclusive", 0)), bool(node.attr("reverse", 0))

    def compute(x: Tensor, *_: Tensor) -> Tensor:
        value = x.flip(axis) if backwards else x
        total = torch.cumsum(value, dim=axis)
        total = total - value if exclusive else total
        return total.flip(axis) if backwards else total

    return compute
