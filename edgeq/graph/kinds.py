"""Readable names for graph operations: `aten.linear.default` is a `linear`, `aten.add.Tensor` an `add`."""

from __future__ import annotations

import operator
from collections import Counter

from torch import fx

_ALIASES = {
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_to_copy": "to",
    "_unsafe_view": "reshape",
    "view": "reshape",
    "native_group_norm": "group_norm",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "constant_pad_nd": "pad",
    "clamp_min": "clamp",
    "clamp_max": "clamp",
}


def op_kind(node: fx.Node) -> str:
    """The operation of `node` in plain words: `linear`, `conv2d`, `matmul`, `add`, `softmax`, ...

    Nodes that compute nothing are `input`, `constant` and `output`; picking one result of several is `getitem`.
    Overloads of one operation share a kind.
    """
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return "constant"
    if node.op != "call_function":
        return node.op
    if node.target is operator.getitem:
        return "getitem"
    packet = getattr(node.target, "overloadpacket", None)
    name = str(getattr(packet or node.target, "__name__", node.target))
    name = _ALIASES.get(name, name)
    return name.removesuffix("_") or name


def count_ops(graph: fx.GraphModule | fx.Graph) -> dict[str, int]:
    """How many operations of each kind the graph holds, sorted by kind; inputs, constants and picks do not count."""
    nodes = graph.graph.nodes if isinstance(graph, fx.GraphModule) else graph.nodes
    counts = Counter(op_kind(n) for n in nodes if n.op == "call_function" and n.target is not operator.getitem)
    return dict(sorted(counts.items()))
