"""Small tools that every graph rewrite needs: constants, insertion, replacement, shapes, and the final state."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import Argument

from edgeq.errors import ModelError
from edgeq.graph.bounds import KEY as BOUNDS

aten = torch.ops.aten
_HANDED_DOWN = ("onnx_name", "onnx_node")
_OWN = frozenset({"val", "tensor_meta", BOUNDS, *_HANDED_DOWN})  # says something of one node alone


def fetch(gm: fx.GraphModule, target: str) -> Tensor:
    """The tensor behind the attribute path `target`."""
    owner: Any = gm
    for part in target.split("."):
        owner = getattr(owner, part)
    if not isinstance(owner, Tensor):
        raise ModelError(f"constant {target!r} is a {type(owner).__name__}, not a tensor", code="EQ-M103", place=target)
    return owner.detach()


def constant_of(gm: fx.GraphModule, node: object) -> Tensor | None:
    """The tensor of a constant node, None for every other node or value."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        return fetch(gm, str(node.target))
    return None


def add_constant(gm: fx.GraphModule, path: str, value: Tensor, like: fx.Node) -> fx.Node:
    """A new constant node before `like`. `path` is what it will be called in the finished graph, if that is free."""
    taken = gm.meta.setdefault("edgeq_constants", 0)
    gm.meta["edgeq_constants"] = taken + 1
    target = f"_edgeq_constant_{taken}"
    gm.register_buffer(target, value.detach().contiguous(), persistent=False)
    with gm.graph.inserting_before(like):
        node = gm.graph.create_node("get_attr", target)
    node.meta["wish"] = path
    node.meta["val"] = value
    return node


def path_of(node: object) -> str:
    """The attribute path that constant `node` has or wishes to have; empty for anything else."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        return str(node.meta.get("wish") or node.target)
    return ""


def call(
    gm: fx.GraphModule, target: Callable[..., Any], *args: object, before: fx.Node, like: fx.Node | None = None
) -> fx.Node:
    """A new operation before `before`, with its provenance taken from `like` (default `before`)."""
    with gm.graph.inserting_before(before):
        node = gm.graph.call_function(target, cast("tuple[Argument, ...]", args))
    source = like or before
    node.meta = {k: v for k, v in source.meta.items() if k not in _OWN}
    return node


def supersede(old: fx.Node, new: fx.Node) -> None:
    """Let `new` stand for the value of `old` everywhere; what `old` was called in ONNX now names `new`."""
    for key in _HANDED_DOWN:
        if key in old.meta and new.op == "call_function":
            new.meta[key] = old.meta[key]
    sources = old.all_input_nodes
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
    prune(*sources)


def prune(*nodes: fx.Node) -> None:
    """Erase operations that nobody reads, and what only they read."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and not node.users and not node._erased:
            waiting.extend(node.all_input_nodes)
            node.graph.erase_node(node)


def calls(gm: fx.GraphModule, *targets: object) -> Iterable[fx.Node]:
    """The operations with one of `targets`, as they are now, in order."""
    return [n for n in gm.graph.nodes if n.op == "call_function" and n.target in targets]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Static shape of the tensor that `node` yields."""
    return tuple(int(d) for d in node.meta["val"].shape)


def single_user(node: fx.Node) -> bool:
    """Whether exactly one operation reads `node`."""
    return len(node.users) == 1


def refresh(gm: fx.GraphModule) -> None:
    """Recompute `meta["val"]` (fake tensors of static shape) of every node."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    values: dict[fx.Node, Any] = {}
    with mode, torch.no_grad():
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                old = node.meta["val"]
                value: Any = torch.empty(tuple(old.shape), dtype=old.dtype)
            elif node.op == "get_attr":
                value = mode.from_tensor(fetch(gm, str(node.target)), static_shapes=True)
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
                value = node.target(*args, **kwargs)
            else:
                value = fx.node.map_arg(node.args[0], lambda n: values[n])
            values[node] = node.meta["val"] = value


def number(value: object) -> int:
    """An argument that is a whole number."""
    assert isinstance(value, int)
    return value


def axes_of(value: object, rank: int) -> tuple[int, ...]:
    """An argument that is a list of axes, counted from the front and sorted."""
    assert isinstance(value, (list, tuple))
    return tuple(sorted(number(a) % rank for a in value))


def is_getitem(node: fx.Node) -> bool:
    """Whether `node` picks one of several results."""
    return node.op == "call_function" and node.target is operator.getitem
