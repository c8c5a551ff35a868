"""Structure that exporters take apart is found again: layer norms, activations, attention.

`recognize` rewrites what has one ATen operation; attention keeps its parts, because quantizers and transforms address
them one by one, and is described by `AttentionSite`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx

from edgeq.graph.activations import fuse_activations
from edgeq.graph.kinds import count_ops, op_kind
from edgeq.graph.rewrite import (
    add_constant,
    aten,
    axes_of,
    call,
    calls,
    constant_of,
    path_of,
    shape_of,
    single_user,
    supersede,
)

__all__ = [
    "AttentionSite",
    "annotate_attention",
    "attention_sites",
    "count_ops",
    "fuse_layer_norm",
    "op_kind",
    "recognize",
]


@dataclass(frozen=True)
class AttentionSite:
    """One attention of the network; nodes by name, so that it stays true for copies of the graph.

    Args:
        index: Position among the attentions, from 0, in execution order.
        heads: Heads that are computed side by side.
        tokens: Query tokens T.
        keys: Key tokens K.
        head_dim: Width of one head.
        scores: Matmul of queries and keys, `(..., heads, T, K)`.
        softmax: Softmax over the keys.
        context: Matmul of probabilities and values.
        scaled: Whether the scores are multiplied by a number, or by one for each head, after the matmul.
        masked: Whether a mask is added to the scores.
    """

    index: int
    heads: int
    tokens: int
    keys: int
    head_dim: int
    scores: str
    softmax: str
    context: str
    scaled: bool
    masked: bool


def recognize(gm: fx.GraphModule) -> None:
    """Replace taken-apart layer norms and activations by single operations, in place."""
    fuse_layer_norm(gm)
    fuse_activations(gm)


def attention_sites(gm: fx.GraphModule) -> list[AttentionSite]:
    """All attentions of the graph: matmul, [scale], [mask], softmax over the last axis, matmul."""
    sites: list[AttentionSite] = []
    for softmax in calls(gm, aten.softmax.int, aten._softmax.default):
        rank = len(shape_of(softmax))
        axis = softmax.args[1]
        contexts = [u for u in softmax.users if u.target is aten.matmul.default and u.args[0] is softmax]
        if rank < 3 or not isinstance(axis, int) or axis % rank != rank - 1 or not contexts:
            continue
        found = _scores(gm, softmax.args[0])
        if found is None:
            continue
        scores, scaled, masked = found
        *_, heads, tokens, keys = shape_of(softmax)
        query = scores.args[0]
        assert isinstance(query, fx.Node)
        sites.append(
            AttentionSite(
                index=len(sites),
                heads=heads,
                tokens=tokens,
                keys=keys,
                head_dim=shape_of(query)[-1],
                scores=scores.name,
                softmax=softmax.name,
                context=contexts[0].name,
                scaled=scaled,
                masked=masked,
            )
        )
    return sites


def network_kind(gm: fx.GraphModule) -> Literal["transformer", "convolution"]:
    """What `--method auto` takes a network for: a transformer has attention, or streams that layer norms read."""
    streams = any(True for _ in calls(gm, aten.layer_norm.default))
    return "transformer" if streams or attention_sites(gm) else "convolution"


def annotate_attention(gm: fx.GraphModule) -> None:
    """Write each `AttentionSite` into `meta["attention"]` of its three nodes."""
    by_name = {n.name: n for n in gm.graph.nodes}
    for site in attention_sites(gm):
        for name in (site.scores, site.softmax, site.context):
            by_name[name].meta["attention"] = site


def _scores(gm: fx.GraphModule, node: object) -> tuple[fx.Node, bool, bool] | None:
    """The matmul before a softmax, and whether a scale and a mask lie between."""
    scaled = masked = False
    for _ in range(6):
        if not isinstance(node, fx.Node):
            return None
        if node.target is aten.matmul.default:
            return node, scaled, masked
        shape = shape_of(node)
        if node.target in (aten.mul.Tensor, aten.div.Tensor) and _constant(gm, node.args[1]):
            scaled, node = True, node.args[0]
        elif node.target in (aten.add.Tensor, aten.where.self, aten.masked_fill.Scalar, aten.reshape.default):
            same = [n for n in node.all_input_nodes if _leads_to_matmul(n)]
            masked = masked or node.target is not aten.reshape.default
            node = same[0] if len(same) == 1 else None
        elif node.target is aten.maximum.default and shape:
            node = node.args[0]
        else:
            return None
    return None


def _leads_to_matmul(node: fx.Node) -> bool:
    """Whether `node` is a matmul of two activations, directly or through scales, masks and reshapes."""
    for _ in range(6):
        if node.target is aten.matmul.default:
            return True
        if op_kind(node) not in ("mul", "div", "add", "reshape", "maximum", "where", "masked_fill"):
            return False
        sources = [n for n in node.all_input_nodes if n.op == "call_function"]
        if not sources:
            return False
        node = sources[0]
    return False


@dataclass(frozen=True)
class _Centered:
    """`source - mean(source, axes)`."""

    source: fx.Node
    axes: tuple[int, ...]


def _number(gm: fx.GraphModule, value: object) -> float | None:
    """`value` as a number when it is one or a constant of one element."""
    if isinstance(value, (int, float)):
        return float(value)
    constant = constant_of(gm, value)
    return float(constant.reshape(()).item()) if constant is not None and constant.numel() == 1 else None


def _constant(gm: fx.GraphModule, value: object) -> bool:
    """Whether `value` is a number or a constant (a scale for each head)."""
    return isinstance(value, (int, float)) or constant_of(gm, value) is not None


def _mean(node: object) -> _Centered | None:
    """`node` as the mean of a tensor over its last axes, kept as size 1."""
    if not isinstance(node, fx.Node) or node.target is not aten.mean.dim or not isinstance(node.args[0], fx.Node):
        return None
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    rank = len(shape_of(node.args[0]))
    axes = axes_of(node.args[1], rank)
    trailing = tuple(range(rank - len(axes), rank))
    return _Centered(node.args[0], axes) if keep and axes == trailing else None


def _centered(node: object) -> _Centered | None:
    """`node` as a tensor minus its mean."""
    if not isinstance(node, fx.Node) or node.target is not aten.sub.Tensor or node.kwargs.get("alpha", 1) != 1:
        return None
    mean = _mean(node.args[1])
    return mean if mean is not None and mean.source is node.args[0] else None


def _variance(gm: fx.GraphModule, node: object) -> _Centered | None:
    """`node` as a variance: the mean of the squared differences from the mean."""
    outer = _mean(node)
    if outer is None:
        return _library_variance(node)
    square = outer.source
    squared = (
        (square.target is aten.pow.Tensor_Scalar and _number(gm, square.args[1]) == 2.0)
        or (square.target is aten.mul.Tensor and square.args[0] is square.args[1])
        or square.target is aten.square.default
    )
    inner = _centered(square.args[0]) if squared else None
    return inner if inner is not None and inner.axes == outer.axes else None


def _library_variance(node: object) -> _Centered | None:
    """`node` as `aten.var` without Bessel's correction over the last axes."""
    if not isinstance(node, fx.Node) or node.target not in (aten.var.correction, aten.var.dim):
        return None
    source, listed = node.args[0], node.args[1]
    if not isinstance(source, fx.Node) or not isinstance(listed, (list, tuple)):
        return None
    if node.target is aten.var.dim:
        unbiased = node.args[2] if len(node.args) > 2 else True
        keep = node.args[3] if len(node.args) > 3 else False
    else:
        unbiased, keep = node.kwargs.get("correction", 1) != 0, node.kwargs.get("keepdim", False)
    rank = len(shape_of(source))
    axes = axes_of(listed, rank)
    trailing = axes == tuple(range(rank - len(axes), rank))
    return _Centered(source, axes) if keep and not unbiased and trailing else None


def _deviation(gm: fx.GraphModule, node: object, inverse: bool) -> tuple[_Centered, float] | None:
    """`node` as `sqrt(variance + eps)`, or as its inverse; with eps."""
    if not isinstance(node, fx.Node):
        return None
    power = _number(gm, node.args[1]) if node.target is aten.pow.Tensor_Scalar else None
    if inverse and node.target is aten.reciprocal.default:
        return _deviation(gm, node.args[0], inverse=False)
    rooted = node.target is (aten.rsqrt.default if inverse else aten.sqrt.default)
    if not rooted and power != (-0.5 if inverse else 0.5):
        return None
    total = node.args[0]
    if not isinstance(total, fx.Node) or total.target is not aten.add.Tensor:
        return None
    for variance, eps in (total.args[:2], total.args[1::-1]):
        number, found = _number(gm, eps), _variance(gm, variance)
        if number is not None and found is not None:
            return found, number
    return None


def _normalized(gm: fx.GraphModule, node: fx.Node) -> tuple[_Centered, float] | None:
    """`node` as `(x - mean) / sqrt(variance + eps)`."""
    if node.target is aten.div.Tensor:
        pairs = [(node.args[0], node.args[1], False)]
    elif node.target is aten.mul.Tensor:
        pairs = [(node.args[0], node.args[1], True), (node.args[1], node.args[0], True)]
    else:
        return None
    for top, bottom, inverse in pairs:
        centered, deviation = _centered(top), _deviation(gm, bottom, inverse)
        if centered is not None and deviation is not None and centered == deviation[0]:
            return deviation
    return None


def fuse_layer_norm(gm: fx.GraphModule) -> None:
    """Replace normalization over the last axes, with its scale and shift where they follow, by `aten.layer_norm`.

    Source: Ba et al., arXiv:1607.06450, equation 4. Spellings: square by `pow`, product or `var`; division or
    product with the inverse root.
    """
    for node in calls(gm, aten.div.Tensor, aten.mul.Tensor):
        found = _normalized(gm, node)
        if found is None:
            continue
        centered, eps = found
        shape = [shape_of(centered.source)[a] for a in centered.axes]
        last, weight = _follow(gm, node, aten.mul.Tensor, shape)
        end, bias = _follow(gm, last, aten.add.Tensor, shape)
        stored: list[fx.Node | None] = []
        for part, constant, origin in (("weight", weight, last), ("bias", bias, end)):
            if constant is None:
                stored.append(None)
                continue
            path = next((path_of(a) for a in origin.args if path_of(a)), "") or f"{node.meta.get('path')}.{part}"
            stored.append(add_constant(gm, path, constant.reshape(shape), end))
        new = call(gm, aten.layer_norm.default, centered.source, shape, *stored, eps, before=end, like=node)
        new.meta["val"] = end.meta["val"]
        supersede(end, new)


def _follow(gm: fx.GraphModule, node: fx.Node, target: object, shape: list[int]) -> tuple[fx.Node, Tensor | None]:
    """The only reader of `node` if it is `target` with a constant of one value per normalized element."""
    if not single_user(node):
        return node, None
    user = next(iter(node.users))
    if user.target is not target or user.kwargs.get("alpha", 1) != 1:
        return node, None
    others = [a for a in user.args[:2] if a is not node]
    constant = constant_of(gm, others[0]) if others else None
    if constant is None or shape_of(user) != shape_of(node):
        return node, None
    size = math.prod(shape)
    core = tuple(s for s in constant.shape[: constant.dim() - len(shape)] if s != 1)
    trailing = tuple(constant.shape[constant.dim() - len(shape) :]) if constant.dim() >= len(shape) else ()
    return (user, constant) if constant.numel() == size and trailing == tuple(shape) and not core else (node, None)
