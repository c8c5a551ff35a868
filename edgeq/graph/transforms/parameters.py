"""Reading and replacing the constants of one operation, without touching what other operations read."""

from __future__ import annotations

import re

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from edgeq.errors import InternalError
from edgeq.graph.rewrite import constant_of, path_of


def argument(node: fx.Node, name: str) -> object:
    """Argument `name` of an ATen operation, however it is passed; its default where it is not passed."""
    position, default = _position(node, name)
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def parameter(gm: fx.GraphModule, node: fx.Node, name: str) -> Tensor | None:
    """The constant that is argument `name` of `node`, or None."""
    return constant_of(gm, argument(node, name))


def set_parameter(gm: fx.GraphModule, node: fx.Node, name: str, value: Tensor) -> str:
    """Make the constant `value` the argument `name` of `node`, and return its attribute path.

    A constant that only `node` reads is replaced under its path; its memory is left as it was, because graphs share
    it. Otherwise the constant gets a path of its own, named after the weight of `node`.

    Args:
        gm: The graph.
        node: An ATen operation.
        name: Argument by the operator's schema (`weight`, `bias`).
        value: The tensor; stored as float32 if it is floating point.

    Raises:
        InternalError: The operation has no such argument, or the value is not finite.
    """
    if not bool(torch.isfinite(value).all()):
        raise InternalError(f"the new {name} of {node.name} is not finite", code="EQ-Z261", place=node.name)
    position, _ = _position(node, name)
    value = value.detach().to(torch.float32).contiguous() if value.is_floating_point() else value.detach()
    current = argument(node, name)
    if isinstance(current, fx.Node) and current.op == "get_attr" and _only_reader(gm, current, node):
        path = str(current.target)
        _store(gm, path, value)
        current.meta["val"] = value
        return path
    wish = path_of(current) or f"{_owner(node)}.{name}"
    path = _free(gm, wish)
    _store(gm, path, value)
    with gm.graph.inserting_before(node):
        constant = gm.graph.create_node("get_attr", path, name=re.sub(r"\W+", "_", path))
    constant.meta["val"] = value
    _pass(node, position, name, constant)
    if isinstance(current, fx.Node) and current.op == "get_attr" and not current.users:
        gm.graph.erase_node(current)
    gm.recompile()
    return path


def store_constant(gm: fx.GraphModule, path: str, value: Tensor, before: fx.Node) -> fx.Node:
    """A new constant under `path`, numbered if that is taken, as a node before `before`."""
    free, value = _free(gm, path), value.detach().to(torch.float32).contiguous()
    _store(gm, free, value)
    with gm.graph.inserting_before(before):
        node = gm.graph.create_node("get_attr", free, name=re.sub(r"\W+", "_", free))
    node.meta["val"] = value
    return node


def _position(node: fx.Node, name: str) -> tuple[int, object]:
    """Index and default of argument `name`."""
    schema = getattr(node.target, "_schema", None)
    for position, entry in enumerate(schema.arguments if schema is not None else ()):
        if entry.name == name:
            return position, entry.default_value if entry.has_default_value() else None
    raise InternalError(f"{node.target} has no argument {name!r}", code="EQ-Z261", place=node.name)


def _pass(node: fx.Node, position: int, name: str, value: fx.Node) -> None:
    """Make `value` argument `position` of `node`, filling what lies before with defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    arguments = list(node.args)
    kwargs = {k: v for k, v in node.kwargs.items() if k != name}
    arguments += [kwargs.pop(e.name, e.default_value) for e in schema.arguments[len(arguments) : position]]
    filled: list[Argument] = [*arguments[:position], value, *arguments[position + 1 :]]
    node.args, node.kwargs = tuple(filled), kwargs


def _only_reader(gm: fx.GraphModule, constant: fx.Node, reader: fx.Node) -> bool:
    """Whether no other operation, nor another argument of `reader`, reads the tensor behind `constant`."""
    nodes = [n for n in gm.graph.nodes if n.op == "get_attr" and n.target == constant.target]
    users = {u for n in nodes for u in n.users}
    return users == {reader} and sum(a in nodes for a in (*reader.args, *reader.kwargs.values())) == 1


def _owner(node: fx.Node) -> str:
    """Path of the module that holds the weight of `node`; its name where there is none."""
    paths = [path_of(a) for a in node.args if path_of(a)]
    return paths[0].rpartition(".")[0] or node.name if paths else node.name


def _free(gm: fx.GraphModule, wish: str) -> str:
    """`wish`, numbered until no attribute of the graph module has that name."""
    *parents, _ = wish.split(".")
    for end in range(1, len(parents) + 1):  # nothing can be stored below a tensor
        if isinstance(_attribute(gm, ".".join(parents[:end])), Tensor):
            wish = wish.replace(".", "_")
            break
    free, count = wish, 0
    while _attribute(gm, free) is not None:
        count += 1
        free = f"{wish}_{count}"
    return free


def _attribute(gm: fx.GraphModule, path: str) -> object:
    """What stands behind `path`, or None."""
    owner: object = gm
    for part in path.split("."):
        owner = getattr(owner, part, None)
    return owner


def _store(gm: fx.GraphModule, path: str, value: Tensor) -> None:
    """Put a tensor behind `path`; floats become frozen parameters, everything else buffers."""
    *parents, leaf = path.split(".")
    owner: nn.Module = gm
    for part in parents:
        if not isinstance(getattr(owner, part, None), nn.Module):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    if value.is_floating_point():
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    else:
        owner.register_buffer(leaf, value)
