"""Rewrites for what OpenVINO's integer kernels lack or get wrong: the same function in float."""

from __future__ import annotations

import copy

from torch import fx

from edgeq.exporters.rewrite import hoist_relu, to_subpixel
from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import aten, calls, refresh


def prepare_openvino(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of `graph` in which transposed convolutions are sub-pixel convolutions, and ReLUs follow their layer."""
    prepared = copy.deepcopy(graph)
    for node in calls(prepared, aten.conv_transpose2d.input):
        to_subpixel(prepared, node)
    for node in calls(prepared, aten.relu.default):
        hoist_relu(prepared, node)
    refresh(prepared)
    return rebuild(prepared)
