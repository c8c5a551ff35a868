"""Rewrites for what TFLite lacks: the same function in float, in operations that have integer kernels."""

from __future__ import annotations

import copy

from torch import fx

from edgeq.exporters.rewrite import hoist_relu, split_silu, to_subpixel
from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import aten, calls, refresh


def prepare_tflite(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of `graph` in which transposed convolutions are sub-pixel convolutions, and ReLUs follow their layer.

    TFLite's converter quantizes no transposed convolution from Q/DQ, so each would stay a float island, in size and
    in time. A ReLU behind a reshape or a crop would neither be absorbed by the layer nor run by XNNPACK in integers.
    """
    prepared = copy.deepcopy(graph)
    for node in calls(prepared, aten.conv_transpose2d.input):
        to_subpixel(prepared, node)
    for node in calls(prepared, aten.relu.default):
        hoist_relu(prepared, node)
    for node in calls(prepared, aten.silu.default):
        split_silu(prepared, node)
    refresh(prepared)
    return rebuild(prepared)
