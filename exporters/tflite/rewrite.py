"""Rewrites for what TFLite lacks: the same function in float, in operations that have integer kernels."""

from __future__ import annotations

import copy

from torch import fx

from edgeq.exporters.hard_activations import split_hard_activations
from edgeq.exporters.rewrite import hoist_relu, split_silu, to_subpixel
from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import aten, call, calls, refresh, shape_of, supersede


def prepare_tflite(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of `graph` in which transposed convolutions are sub-pixel convolutions, and ReLUs follow their layer.

    TFLite's converter quantizes no transposed convolution from Q/DQ, so each would stay a float island, in size and
    in time. A ReLU behind a reshape or a crop would neither be absorbed by the layer nor run by XNNPACK in integers.
    SiLU and hard activations are products, sums and clips. Rows are picked within bounds.
    """
    prepared = copy.deepcopy(graph)
    for node in calls(prepared, aten.conv_transpose2d.input):
        to_subpixel(prepared, node)
    for node in calls(prepared, aten.relu.default):
        hoist_relu(prepared, node)
    for node in calls(prepared, aten.silu.default):
        split_silu(prepared, node)
    split_hard_activations(prepared)
    for node in calls(prepared, aten.index_select.default):
        pick_in_bounds(prepared, node)
    refresh(prepared)
    return rebuild(prepared)


def pick_in_bounds(graph: fx.GraphModule, node: fx.Node) -> None:
    """Write `index_select` as indexing, which the converter takes for one gather.

    It writes `index_select` with NaN for rows beyond the table. Quantized, that NaN decides the grid of everything that
    is picked (PointMLP then keeps -1 dB); in float it costs a choice for each value.
    """
    source, axis, index = node.args
    assert isinstance(source, fx.Node) and isinstance(axis, int)
    before = [None] * (axis % len(shape_of(source)))
    supersede(node, call(graph, aten.index.Tensor, source, [*before, index], before=node))
