"""Activation functions found by their values: `x * 0.5 * (1 + erf(x / sqrt(2)))` in any spelling is a GELU.

A region of pointwise operations that depends on one tensor and on scalars computes some function of one number. It is
evaluated on a grid in float64 and compared with the activations PyTorch has, so that the order of factors, divisions
for products, `x*x*x` for `pow(x, 3)` and the like need no patterns of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from torch.nn import functional

from edgeq.graph.rewrite import aten, call, constant_of, supersede

_POINTWISE = frozenset(
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.rsub.Scalar,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.pow.Tensor_Scalar,
        aten.reciprocal.default,
        aten.neg.default,
        aten.exp.default,
        aten.log.default,
        aten.log1p.default,
        aten.erf.default,
        aten.tanh.default,
        aten.sigmoid.default,
        aten.relu.default,
        aten.relu6.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.clamp_max.default,
        aten.hardtanh.default,
        aten.hardsigmoid.default,
        aten.softplus.default,
    }
)
_LONGEST = 14
_TOLERANCE = 1e-5
_FAR = (-1000.0, -100.0, -20.0, 20.0, 100.0, 1000.0)
_GRID = torch.cat([torch.linspace(-8.0, 8.0, 1601, dtype=torch.float64), torch.tensor(_FAR, dtype=torch.float64)])


@dataclass(frozen=True)
class _Activation:
    """An activation of PyTorch: how it is called and what it yields on the grid."""

    target: Callable[..., Tensor]
    compute: Callable[[Tensor], Tensor]
    options: dict[str, str] = field(default_factory=dict)


_KNOWN = (
    _Activation(aten.gelu.default, functional.gelu),
    _Activation(aten.gelu.default, lambda x: functional.gelu(x, approximate="tanh"), {"approximate": "tanh"}),
    _Activation(aten.silu.default, functional.silu),
    _Activation(aten.hardswish.default, functional.hardswish),
    _Activation(aten.hardsigmoid.default, functional.hardsigmoid),
    _Activation(aten.mish.default, functional.mish),
)
_VALUES = tuple(known.compute(_GRID) for known in _KNOWN)


def fuse_activations(gm: fx.GraphModule) -> None:
    """Replace spelled-out GELU (erf and tanh form), SiLU, hard swish, hard sigmoid and Mish by one operation each."""
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    for root in reversed(list(gm.graph.nodes)):
        if root.target not in _POINTWISE or not root.users:
            continue
        found = _match(gm, root, order)
        if found is None:
            continue
        source, activation = found
        new = call(gm, activation.target, source, before=root)
        new.kwargs = dict(activation.options)
        new.meta["val"] = root.meta["val"]
        order[new] = order[root]
        supersede(root, new)


def _match(gm: fx.GraphModule, root: fx.Node, order: dict[fx.Node, int]) -> tuple[fx.Node, _Activation] | None:
    """The tensor that `root` is an activation of, and which: grow the region from `root` until one tensor feeds it."""
    region = [root]
    frontier = _operands(gm, root)
    while frontier and len(region) <= _LONGEST:
        if len(frontier) == 1 and len(region) > 1:
            activation = _identify(gm, region, next(iter(frontier)))
            if activation is not None:
                return next(iter(frontier)), activation
        latest = max(frontier, key=order.__getitem__)
        if latest.target not in _POINTWISE or any(user not in region for user in latest.users):
            return None
        frontier = (frontier - {latest}) | _operands(gm, latest)
        region.append(latest)
    return None


def _operands(gm: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """Tensors that `node` reads, except constants of one element."""
    return {n for n in node.all_input_nodes if (value := constant_of(gm, n)) is None or value.numel() != 1}


def _identify(gm: fx.GraphModule, region: list[fx.Node], source: fx.Node) -> _Activation | None:
    """The activation that `region`, listed from its end, computes from `source`."""
    if source.meta["val"].shape != region[0].meta["val"].shape or not source.meta["val"].is_floating_point():
        return None
    values: dict[fx.Node, Tensor] = {source: _GRID}

    def value_of(node: fx.Node) -> Tensor:
        if node not in values:
            constant = constant_of(gm, node)
            assert constant is not None
            values[node] = constant.reshape(()).double()
        return values[node]

    for node in reversed(region):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    result = values[region[0]]
    for known, expected in zip(_KNOWN, _VALUES, strict=True):
        if bool(((result - expected).abs() <= _TOLERANCE * (1 + expected.abs())).all()):
            return known
    return None
