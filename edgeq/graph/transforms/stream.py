"""The residual streams of a transformer: every tensor that an orthogonal matrix can rotate without a trace.

A stream is what linears, convolutions and constants write into by sums and concatenations, and what only layer norms
read. Rotating it means rotating every writer and undoing the rotation in the readers of the norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from edgeq.graph.kinds import op_kind
from edgeq.graph.rewrite import aten, axes_of, calls, shape_of
from edgeq.graph.transforms.parameters import argument, parameter
from edgeq.graph.transforms.projections import Reader, is_move, moved, readers


@dataclass(frozen=True)
class Constant:
    """A constant that a sum or a concatenation brings into a stream.

    Args:
        reader: Name of the sum or concatenation.
        node: Name of the constant.
        axis: Its channel axis.
    """

    reader: str
    node: str
    axis: int


@dataclass(frozen=True)
class NormRead:
    """A linear or convolution that reads a norm of the stream.

    Args:
        node: Its name.
        factor: Number that the norm is multiplied by on the way.
        padded: Whether a convolution pads the norm's output with zeros, so that a shift cannot move into its bias.
    """

    node: str
    factor: float
    padded: bool


@dataclass(frozen=True)
class Stream:
    """One residual stream; nodes by name, so that it stays true for copies of the graph.

    Args:
        channels: Its width C.
        axes: Channel axis of each tensor of the stream.
        writers: Linears and convolutions whose output channels enter it.
        constants: Constants that enter it.
        norms: Layer norms that read it, each with the linears and convolutions that read the norm.
        reason: Why it cannot be rotated; empty when it can.
    """

    channels: int
    axes: Mapping[str, int] = field(default_factory=dict)
    writers: tuple[str, ...] = ()
    constants: tuple[Constant, ...] = ()
    norms: Mapping[str, tuple[NormRead, ...]] = field(default_factory=dict)
    reason: str = ""


class _Fixed(Exception):
    """Why a stream cannot be rotated."""


def residual_streams(gm: fx.GraphModule) -> list[Stream]:
    """All streams that a layer norm over the last axis reads, in execution order."""
    streams: list[Stream] = []
    seen: set[fx.Node] = set()
    for norm in calls(gm, aten.layer_norm.default):
        source = norm.args[0]
        if not isinstance(source, fx.Node) or source in seen:
            continue
        search = _Search(gm)
        try:
            streams.append(search.run(source))
        except _Fixed as reason:
            streams.append(Stream(shape_of(norm)[-1], norms={norm.name: ()}, reason=str(reason)))
        seen |= search.nodes
    return streams


class _Search:
    """Grows one stream from a tensor that belongs to it."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.nodes: set[fx.Node] = set()
        self.norms: list[fx.Node] = []
        self.axes: dict[fx.Node, int] = {}

    def run(self, start: fx.Node) -> Stream:
        self._grow(start)
        ordered = [n for n in self.gm.graph.nodes if n in self.nodes]
        for node in ordered:
            self.axes[node] = self._axis(node)
        widths = {shape_of(n)[a] for n, a in self.axes.items()}
        if len(widths) != 1:
            raise _Fixed(f"its tensors have different widths: {sorted(widths)}")
        constants = [c for n in ordered if _joins(n) for c in self._constants(n)]
        norms = [n for n in self.gm.graph.nodes if n in set(self.norms)]
        return Stream(
            channels=widths.pop(),
            axes={n.name: a for n, a in self.axes.items()},
            writers=tuple(n.name for n in ordered if _writes(self.gm, n)),
            constants=tuple(constants),
            norms={n.name: self._norm_readers(n) for n in norms},
        )

    def _grow(self, start: fx.Node) -> None:
        """Collect the nodes: back to the writers, forward to the norms."""
        waiting = [start]
        while waiting:
            node = waiting.pop()
            if node in self.nodes or node.op == "get_attr":
                continue
            self.nodes.add(node)
            if not _writes(self.gm, node):
                if not (_joins(node) or is_move(node)):
                    raise _Fixed(f"{node.name} ({op_kind(node)}) writes into it")
                waiting.extend(node.all_input_nodes)
            for user in node.users:
                if user.target is aten.layer_norm.default and user.args[0] is node:
                    self.norms.append(user)
                elif _joins(user) or is_move(user):
                    waiting.append(user)
                else:
                    raise _Fixed(f"{user.name} ({op_kind(user)}) reads it")

    def _axis(self, node: fx.Node) -> int:
        """Channel axis of a collected node; those before it are known."""
        rank = len(shape_of(node))
        if _writes(self.gm, node):
            return rank - 1 if node.target is aten.linear.default else 1
        known = [n for n in node.all_input_nodes if n in self.axes]
        if is_move(node):
            if not known:
                raise _Fixed(f"{node.name} moves a constant")
            axis = axis_after(node, known[0], self.axes[known[0]])
            if axis is None:
                raise _Fixed(f"{node.name} tears its channels apart")
            return axis
        found = {self.axes[n] + rank - len(shape_of(n)) for n in known}
        if len(found) != 1:
            raise _Fixed(f"{node.name} joins different channel axes")
        axis = found.pop()
        if node.target is aten.cat.default and _cat_axis(node) == axis:
            raise _Fixed(f"{node.name} concatenates channels")
        return axis

    def _constants(self, node: fx.Node) -> list[Constant]:
        """Constants among the operands of a sum or concatenation."""
        result = []
        width = shape_of(node)[self.axes[node]]
        numbers = any(isinstance(a, (int, float)) for a in node.args)  # a concatenation has its axis there
        if node.target is aten.add.Tensor and (numbers or node.kwargs.get("alpha", 1) != 1):
            raise _Fixed(f"{node.name} adds a number or scales a term")
        for operand in node.all_input_nodes:
            if operand.op != "get_attr":
                continue
            axis = self.axes[node] - (len(shape_of(node)) - len(shape_of(operand)))
            if axis < 0 or shape_of(operand)[axis] != width:
                raise _Fixed(f"{node.name} adds the same constant to all channels")
            result.append(Constant(node.name, operand.name, axis))
        return result

    def _norm_readers(self, norm: fx.Node) -> tuple[NormRead, ...]:
        """The linears and convolutions behind a norm of the stream."""
        rank = len(shape_of(norm))
        source = norm.args[0]
        assert isinstance(source, fx.Node)
        if self.axes[source] != rank - 1 or list(norm.args[1]) != [shape_of(norm)[-1]]:  # type: ignore[arg-type]
            raise _Fixed(f"{norm.name} does not normalize over the channels alone")
        found = []
        for reader in _beyond_means(self.gm, norm, _ruler(shape_of(norm), rank - 1)):
            axis = _input_axis(self.gm, reader.node)
            if axis is None or reader.position != 0 or not torch.equal(reader.seen, _ruler(reader.seen.shape, axis)):
                raise _Fixed(f"{reader.node.name} ({op_kind(reader.node)}) reads {norm.name}")
            found.append(NormRead(reader.node.name, reader.factor, _pads(reader.node)))
        if not found:
            raise _Fixed(f"nothing reads {norm.name}")
        return tuple(found)


def _beyond_means(gm: fx.GraphModule, node: fx.Node, index: Tensor, factor: float = 1.0) -> Iterator[Reader]:
    """The readers of `node`, looking through means over axes on which `index` does not vary (pooling of tokens)."""
    for reader in readers(gm, node, index):
        if reader.node.target is aten.mean.dim and reader.position == 0:
            axes = list(axes_of(reader.node.args[1], reader.seen.dim()))
            keep = bool(argument(reader.node, "keepdim"))
            low, high = reader.seen.amin(axes, keepdim=keep), reader.seen.amax(axes, keepdim=keep)
            if torch.equal(low, high):
                yield from _beyond_means(gm, reader.node, low, factor * reader.factor)
                continue
        yield replace(reader, factor=factor * reader.factor)


def axis_after(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Where a move puts axis `axis` of `source`; None when it does not stay whole and in order."""
    seen = moved(node, _ruler(shape_of(source), axis))
    if not isinstance(seen, Tensor):
        return None
    width = shape_of(source)[axis]
    for candidate in range(seen.dim()):
        if seen.shape[candidate] == width and torch.equal(seen, _ruler(seen.shape, candidate)):
            return candidate
    return None


def _ruler(shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
    """The index along `axis`, as a tensor of `shape`."""
    line = torch.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return line.expand(tuple(shape))


def _writes(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a linear or an ungrouped convolution of a constant weight."""
    return _input_axis(gm, node) is not None


def _input_axis(gm: fx.GraphModule, node: fx.Node) -> int | None:
    """Channel axis of the input of a linear or an ungrouped 2-D convolution with a constant weight, else None."""
    if node.target is aten.linear.default and parameter(gm, node, "weight") is not None:
        return len(shape_of(node)) - 1
    if node.target is aten.conv2d.default and parameter(gm, node, "weight") is not None:
        groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        return 1 if groups == 1 and len(shape_of(node)) == 4 else None
    return None


def _joins(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (aten.add.Tensor, aten.cat.default)


def _cat_axis(node: fx.Node) -> int:
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(axis, int)
    return axis % len(shape_of(node))


def _pads(node: fx.Node) -> bool:
    """Whether a convolution pads its input."""
    if node.target is not aten.conv2d.default:
        return False
    padding = node.args[4] if len(node.args) > 4 else node.kwargs.get("padding", 0)
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
