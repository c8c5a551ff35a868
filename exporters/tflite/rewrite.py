"""Rewrites for what TFLite lacks: the same function in float, in operations that have integer kernels."""

from __future__ import annotations

import copy

from torch import fx

from edgeq.exporters.rewrites import hoist_relus, subpixel
from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import refresh


def prepare_tflite(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of `graph` in which transposed convolutions are sub-pixel convolutions, and ReLUs follow their layer.

    TFLite's converter quantizes no transposed convolution from Q/DQ, so each would stay a float island, in size and
    in time. A ReLU behind a reshape or a crop would neither be absorbed by the layer nor run by XNNPACK in integers.
    """
    prepared = copy.deepcopy(graph)
    subpixel(prepared)
    hoist_relus(prepared)
    refresh(prepared)
    return rebuild(prepared)
