"""Reordering of the channels between two layers, so that channels of similar range share a group of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeq.errors import UsageError
from edgeq.graph.kinds import op_kind
from edgeq.graph.rewrite import aten, calls, shape_of, single_user
from edgeq.graph.transforms.parameters import argument, parameter, set_parameter
from edgeq.graph.transforms.projections import number_factor
from edgeq.graph.transforms.report import Report, Skipped
from edgeq.quant.uniform import fake_quantize
from edgeq.quant.weights import weight_qparams
from edgeq.spec import PerGroup, QuantSpec

_LAYERS = (aten.linear.default, aten.conv1d.default, aten.conv2d.default)
# Functions of one number, applied to each: the order of the channels is nothing to them.
_POINTWISE = (
    *("relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "relu6"),
    *("clamp", "leaky_relu", "elu", "mish", "softplus", "erf", "abs", "square"),
)
HOMOGENEOUS = ("relu", "leaky_relu")
"""Functions with `f(c x) = c f(x)` for c > 0."""


@dataclass(frozen=True)
class ChannelPair:
    """Two layers with nothing between them but functions of single channels. Nodes by name.

    Args:
        producer: Linear or convolution that puts the channels out.
        between: Operations on the way, in order: pointwise functions and depthwise convolutions.
        consumer: The only layer that reads the channels.
        width: Channels.
    """

    producer: str
    between: tuple[str, ...]
    consumer: str
    width: int


@dataclass(frozen=True)
class Permuted:
    """A pair whose channels were reordered.

    Args:
        consumer: The layer with grids for groups of input channels.
        before: Squared error of its weight on the grid before.
        after: The same afterwards.
    """

    consumer: str
    before: float
    after: float


def channel_pairs(gm: fx.GraphModule) -> tuple[ChannelPair, ...]:
    """All pairs of layers between which the channels can be reordered for free.

    Args:
        gm: Canonical graph with valid shapes.
    """
    return tuple(pair for node in calls(gm, *_LAYERS) for pair in _pair(gm, node))


def permute_channels(gm: fx.GraphModule, pair: ChannelPair, order: Tensor) -> None:
    """Put channel `order[i]` at place i between the two layers of `pair`, by reordering their weights; exact.

    Args:
        gm: Canonical graph, changed in place.
        pair: One of its `channel_pairs`.
        order: int64 `(width,)`, every channel once.

    Raises:
        UsageError: `order` is no permutation of the channels.
    """
    if order.shape != (pair.width,) or not torch.equal(order.sort().values, torch.arange(pair.width)):
        message = f"not an order of {pair.width} channels: {order.tolist()[:8]}"
        raise UsageError(message, code="EQ-U262", hint="name every channel once")
    nodes = {n.name: n for n in gm.graph.nodes}
    for name in (pair.producer, *pair.between):
        for part in ("weight", "bias") if nodes[name].target in _LAYERS else ():
            value = parameter(gm, nodes[name], part)
            if value is not None:
                set_parameter(gm, nodes[name], part, value[order])
    weight = parameter(gm, nodes[pair.consumer], "weight")
    assert weight is not None
    set_parameter(gm, nodes[pair.consumer], "weight", weight[:, order])


def sort_by_range(gm: fx.GraphModule, spec: QuantSpec) -> Report[Permuted]:
    """Sort the channels before each layer by the range of its weights there, where that lowers the error of its grid.

    Source: the channel reordering of RPTQ (Yuan et al., arXiv:2304.01089), done on weights, for grids with one scale
    per group, and sorted rather than clustered. An order is kept only if the squared error of the weight shrinks.

    Args:
        gm: Canonical graph, changed in place.
        spec: Grid of the weights; one scale per group.

    Raises:
        UsageError: The grid has no groups.
    """
    if not isinstance(spec.granularity, PerGroup):
        message = f"the order of channels only matters to groups, not to {spec.granularity}"
        raise UsageError(message, code="EQ-U262", hint="use PerGroup")
    done: list[Permuted] = []
    skipped: list[Skipped] = []
    nodes = {n.name: n for n in gm.graph.nodes}
    for pair in channel_pairs(gm):
        weight = parameter(gm, nodes[pair.consumer], "weight")
        assert weight is not None
        if math.prod(weight.shape[1:]) % spec.granularity.size:
            skipped.append(Skipped(pair.consumer, f"groups of {spec.granularity.size} do not divide its rows"))
            continue
        order = weight.abs().transpose(0, 1).flatten(1).amax(1).argsort(stable=True)
        before, after = (_error(w, spec) for w in (weight, weight[:, order]))
        if after < before:
            permute_channels(gm, pair, order)
            done.append(Permuted(pair.consumer, before, after))
        else:
            skipped.append(Skipped(pair.consumer, "sorting does not lower the error of its weight"))
    return Report(tuple(done), tuple(skipped))


def _error(weight: Tensor, spec: QuantSpec) -> float:
    """Squared error of a weight on its grid."""
    weight = weight.contiguous()
    return float((fake_quantize(weight, weight_qparams(weight, spec)) - weight).double().square().sum())


def _pair(gm: fx.GraphModule, producer: fx.Node) -> Iterator[ChannelPair]:
    """The pair that starts at `producer`, if there is one."""
    shape = shape_of(producer)
    weight = parameter(gm, producer, "weight")
    if weight is None or _groups(producer) != 1 or not _constant_bias(gm, producer):
        return
    axis = _axis(producer)
    between: list[str] = []
    node = producer
    while single_user(node):
        user = next(iter(node.users))
        if user.target in _LAYERS and user.args[0] is node and _axis(user) == axis and _constant_bias(gm, user):
            held = parameter(gm, user, "weight")
            if held is None:
                return
            if _groups(user) == 1:
                yield ChannelPair(producer.name, tuple(between), user.name, shape[axis])
                return
            if _groups(user) != shape[axis] or held.shape[0] != shape[axis]:
                return
        elif number_factor(gm, user) is None and (op_kind(user) not in _POINTWISE or user.args[0] is not node):
            return
        between.append(user.name)
        node = user


def _constant_bias(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a layer has no bias or a constant one."""
    return argument(node, "bias") is None or parameter(gm, node, "bias") is not None


def _groups(node: fx.Node) -> int:
    """Groups of a layer; 1 for a linear."""
    groups = 1 if node.target is aten.linear.default else argument(node, "groups")
    assert isinstance(groups, int)
    return groups


def _axis(node: fx.Node) -> int:
    """Axis of the channels in the output of a layer, counted from the end."""
    return {aten.linear.default: -1, aten.conv1d.default: -2, aten.conv2d.default: -3}[node.target]  # type: ignore[index]
