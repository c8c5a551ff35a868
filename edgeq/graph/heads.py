"""The prediction layers of a detector: cut the graph at the convolutions that its outputs are made of.

What lies behind them (reshapes, concatenations of boxes with scores, softmax over bins, products with strides) mixes
ranges of pixels with ranges of probabilities. No grid of 8 bits serves both, so it is left to the host.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx

from edgeq.graph.kinds import op_kind
from edgeq.graph.naming import rebuild
from edgeq.graph.placement import weight_of
from edgeq.graph.rewrite import fetch, shape_of

_SHAPE_ONLY = frozenset(f"{how}_like" for how in ("full", "ones", "zeros", "empty")) | frozenset(
    f"new_{how}" for how in ("full", "ones", "zeros", "empty")
)
"""Operations that read the shape of a tensor and none of its values."""


def prediction_layers(graph: fx.GraphModule) -> list[fx.Node]:
    """The convolutions with constant weights from which the outputs are reached without another one, in graph order.

    A convolution that computes the mean of bins (a 1x1 convolution with one output and the weights 0, 1, 2, ...) is
    not one of them.
    """
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    waiting = list(graph.graph.output_node().all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if op_kind(node) in _SHAPE_ONLY:
            continue
        if op_kind(node) == "conv2d" and weight_of(node) is not None and not _counts_bins(graph, node):
            found.add(node)
        else:
            waiting.extend(node.all_input_nodes[: 1 if op_kind(node) == "type_as" else None])
    return [node for node in graph.graph.nodes if node in found]


def _counts_bins(graph: fx.GraphModule, node: fx.Node) -> bool:
    weight = fetch(graph, str(weight_of(node)))
    return weight.shape[0] == 1 and weight.shape[1] > 1 and torch.equal(weight.flatten(), _count(weight))


def _count(weight: Tensor) -> Tensor:
    return torch.arange(weight.numel(), dtype=weight.dtype)


def cut_at(graph: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """A copy of `graph` whose outputs are the results of `nodes`."""
    names = [node.name for node in nodes]
    result = copy.deepcopy(graph)
    by_name = {node.name: node for node in result.graph.nodes}
    output = result.graph.output_node()
    output.args = (tuple(by_name[name] for name in names),)
    output.meta["val"] = tuple(by_name[name].meta["val"] for name in names)
    result.graph.eliminate_dead_code()
    result.recompile()
    return rebuild(result)


def by_size(nodes: list[fx.Node]) -> dict[tuple[int, int], list[fx.Node]]:
    """`nodes` by rows and columns of their results, the finest first."""
    groups: dict[tuple[int, int], list[fx.Node]] = {}
    for node in nodes:
        rows, columns = shape_of(node)[2:]
        groups.setdefault((rows, columns), []).append(node)
    return dict(sorted(groups.items(), reverse=True))
