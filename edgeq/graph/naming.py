"""The last step of a capture: stable, readable names for nodes and constants in a freshly built graph module."""

from __future__ import annotations

import keyword
import re
from collections import Counter

from torch import fx, nn

from edgeq.graph.bounds import KEY as BOUNDS
from edgeq.graph.kinds import op_kind
from edgeq.graph.rewrite import fetch, path_of

# Names that a module already uses for itself.
_RESERVED = frozenset(dir(nn.Module())) | {"graph", "code"}
_KEPT = ("val", "path", "onnx_name", "onnx_node", BOUNDS)


def rebuild(gm: fx.GraphModule) -> fx.GraphModule:
    """Copy the graph and its constants under names derived from the module paths.

    An operation that owns a weight is called after the module that holds it (`blocks_0_attn_qkv`); one that is alone
    in its module after the module (`blocks_0_mlp_act`); every other after its module and its kind
    (`blocks_0_attn_softmax`). Equal names get numbers in execution order, so the same model gives the same names.
    Constants share memory with `gm`.
    """
    root = nn.Module()
    graph = fx.Graph()
    crowd = _crowd(gm)
    copies: dict[fx.Node, fx.Node] = {}
    constants: dict[str, fx.Node] = {}
    paths: set[str] = set()
    operations = [n for n in gm.graph.nodes if n.op in ("call_function", "output")]
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    used = [n for operation in operations for n in operation.all_input_nodes if n.op == "get_attr"]
    order = [*dict.fromkeys(used), *inputs, *operations]
    for node in order:
        if node.op == "get_attr":
            target = str(node.target)
            if target not in constants:
                path = _free_path(path_of(node), paths)
                _store(root, path, gm, target)
                constants[target] = graph.create_node("get_attr", path, name=_identifier(path))
            copies[node] = constants[target]
        elif node.op == "output":
            copies[node] = graph.output(fx.node.map_arg(node.args[0], lambda n: copies[n]))
        else:
            name = node.meta.get("path") or node.name if node.op == "placeholder" else _operation_name(node, crowd)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: copies[n])
            target = _identifier(name) if node.op == "placeholder" else node.target
            copies[node] = graph.create_node(node.op, target, args, kwargs, name=_identifier(name))
        copies[node].meta.update({k: v for k, v in node.meta.items() if k in _KEPT})
    graph.lint()
    return fx.GraphModule(root, graph, class_name="Canonical")


def _crowd(gm: fx.GraphModule) -> Counter[str]:
    """How many operations live in each module, children included."""
    crowd: Counter[str] = Counter()
    for node in gm.graph.nodes:
        if node.op == "call_function":
            parts = str(node.meta.get("path", "")).split(".")
            crowd.update({".".join(parts[: i + 1]) for i in range(len(parts))})
    return crowd


def _operation_name(node: fx.Node, crowd: Counter[str]) -> str:
    """Name of an operation before numbering."""
    position = 2 if op_kind(node) in ("layer_norm", "group_norm") else 1
    weight = path_of(node.args[position]) if len(node.args) > position else ""
    if weight.endswith((".weight", "_weight")):
        return weight[: -len(".weight")]
    path = str(node.meta.get("path", ""))
    if path and crowd[path] == 1:
        return path
    return f"{path}.{op_kind(node)}" if path else op_kind(node)


def _identifier(path: str) -> str:
    """`path` as a Python identifier."""
    name = re.sub(r"\W+", "_", path).strip("_")
    if not name or name[0].isdigit() or keyword.iskeyword(name):
        name = f"n_{name}"
    return name


def _free_path(wish: str, taken: set[str]) -> str:
    """`wish` with only word characters and dots, numbered until neither it nor a part of it is another tensor."""
    parts = [re.sub(r"\W+", "_", part).strip("_") for part in wish.split(".")]
    safe = [f"{part}_" if part in _RESERVED or keyword.iskeyword(part) else part for part in parts if part]
    path = ".".join(safe) or "constant"
    if any(path.startswith(f"{t}.") for t in taken):  # nothing can be stored below a tensor
        path = path.replace(".", "_")
    free, count = path, 0
    while _collides(free, taken):
        count += 1
        free = f"{path}_{count}"
    taken.add(free)
    return free


def _collides(path: str, taken: set[str]) -> bool:
    """Whether `path` is taken, lies below a tensor, or has tensors below it."""
    return any(path == t or path.startswith(f"{t}.") or t.startswith(f"{path}.") for t in taken)


def _store(root: nn.Module, path: str, gm: fx.GraphModule, target: str) -> None:
    """Put a constant of `gm` behind `path` of `root`; floats become frozen parameters, everything else buffers."""
    *parents, leaf = path.split(".")
    owner = root
    for part in parents:
        if part not in dict(owner.named_children()):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    value = fetch(gm, target)
    if value.is_floating_point():
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    else:
        owner.register_buffer(leaf, value)
