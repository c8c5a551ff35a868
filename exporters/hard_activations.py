"""Hard swish and hard sigmoid in sums, clips and products, which have integer kernels where they have none.

Both are clips with a slope of 1/6. The clip is written as `relu6(x + 3)`, which covers 0 to 6 on any grid that ends
there without an error, and the sixth is multiplied into the weights that read the result.
"""

from __future__ import annotations

import torch
from torch import fx

from edgeq.graph.bounds import set_bounds
from edgeq.graph.kinds import op_kind
from edgeq.graph.rewrite import aten, call, calls, single_user, supersede
from edgeq.graph.transforms.parameters import parameter, set_parameter

_SHIFT, _TOP = 3.0, 6.0
_EXACT = 1e-6
_LAYERS = (aten.conv2d.default, aten.linear.default)
_LINEAR = frozenset(
    {"mean", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "relu", "upsample_bilinear2d", "upsample_nearest2d"}
    | {"reshape", "flatten", "permute", "transpose", "slice", "select", "squeeze", "unsqueeze"}
)
"""What a positive factor passes: it comes out as it went in."""


def split_hard_activations(graph: fx.GraphModule) -> None:
    """Write every `hardsigmoid(x)` as `relu6(x + 3) / 6`, and every `hardswish(x)` as `x * relu6(x + 3) / 6`.

    Hard sigmoids of other slopes, which are clips from 0 to 1, likewise. The division is done by the weights of the
    layers that read the result, also through sums over the image, moves and products with other tensors; where
    something else reads it, by a multiplication. Slope and shift of a hard sigmoid go into the layer before it.

    Args:
        graph: Changed in place; to be refreshed afterwards.
    """
    for node in calls(graph, aten.hardsigmoid.default):
        _divide(graph, node, _clip(graph, node, node.args[0], 1.0, _SHIFT))
    for node in calls(graph, aten.clamp.default):
        if tuple(node.args[1:]) == (0.0, 1.0):
            _divide(graph, node, _clip(graph, node, *_line(node)))
    for node in calls(graph, aten.hardswish.default):
        clipped = _clip(graph, node, node.args[0], 1.0, _SHIFT, shared=True)
        _divide(graph, node, call(graph, aten.mul.Tensor, node.args[0], clipped, before=node))


def _line(node: fx.Node) -> tuple[fx.node.Argument, float, float]:
    """Source, slope and shift of the line that `node` clips at 0 and 1, times 6."""
    source, slope, shift = node.args[0], _TOP, 0.0
    while isinstance(source, fx.Node) and source.target in (aten.mul.Tensor, aten.add.Tensor) and single_user(source):
        value = source.args[1]
        if not isinstance(value, (int, float)) or source.kwargs:
            break
        if source.target is aten.mul.Tensor:
            slope *= value
        else:
            shift += slope * value
        source = source.args[0]
    return source, slope, shift


def _clip(
    graph: fx.GraphModule, node: fx.Node, source: fx.node.Argument, slope: float, shift: float, shared: bool = False
) -> fx.Node:
    """`relu6(slope * source + shift)`, before `node`; `shared` where something else reads the source, too."""
    assert isinstance(source, fx.Node)
    layer = source.target in _LAYERS and single_user(source) and not shared
    weight = parameter(graph, source, "weight") if layer else None
    if weight is not None:
        bias = parameter(graph, source, "bias")
        moved = slope * (torch.zeros(len(weight)) if bias is None else bias.double()) + shift
        set_parameter(graph, source, "weight", slope * weight.double())
        set_parameter(graph, source, "bias", moved)
    else:
        if abs(slope - 1) > _EXACT:
            source = call(graph, aten.mul.Tensor, source, slope, before=node)
        if abs(shift) > _EXACT:
            source = call(graph, aten.add.Tensor, source, shift, before=node)
    clipped = call(graph, aten.hardtanh.default, source, 0.0, _TOP, before=node)
    set_bounds(clipped, 0.0, _TOP, "hard sigmoid")
    return clipped


def _divide(graph: fx.GraphModule, node: fx.Node, sixfold: fx.Node) -> None:
    """Let `sixfold`, divided by 6, stand for `node`."""
    layers = _layers_behind(graph, node)
    if layers is None:
        supersede(node, call(graph, aten.mul.Tensor, sixfold, 1 / _TOP, before=node))
        return
    supersede(node, sixfold)
    for layer in layers:
        weight = parameter(graph, layer, "weight")
        assert weight is not None
        set_parameter(graph, layer, "weight", weight.double() / _TOP)


def _layers_behind(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
    """The layers that `node` reaches and whose weights can undo a factor of it, each as often as it reaches it.

    None where it reaches anything else.
    """
    found: list[fx.Node] = []
    for reader in node.users:
        if list(reader.args).count(node) != 1:
            return None
        if reader.target in _LAYERS:
            behind = [reader] if reader.args[0] is node and parameter(graph, reader, "weight") is not None else None
        elif op_kind(reader) in _LINEAR or reader.target is aten.mul.Tensor:
            behind = _layers_behind(graph, reader)
        else:
            behind = None
        if behind is None:
            return None
        found += behind
    return found or None
