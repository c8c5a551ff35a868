"""Folding of scales and shifts into the weights before them, and constant matrix products into `linear`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeq.errors import ModelError
from edgeq.graph.rewrite import (
    add_constant,
    aten,
    call,
    calls,
    constant_of,
    is_getitem,
    path_of,
    shape_of,
    single_user,
    supersede,
)

_BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)
_TRAINING_NORMS = (
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_functional.default,
    aten.native_batch_norm.default,
)
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_WEIGHTED = (aten.linear.default, *_CONVOLUTIONS, *_TRANSPOSED)


@dataclass(frozen=True)
class _Weighted:
    """A linear or convolution node with constant weight and bias.

    Args:
        node: The operation.
        weight: Its weight as stored.
        bias: Its bias `(outputs,)`, or None.
        outputs: Number of output channels.
        channel_axis: Axis of the channels in the output.
    """

    node: fx.Node
    weight: Tensor
    bias: Tensor | None
    outputs: int
    channel_axis: int

    def scaled(self, scale: Tensor) -> Tensor:
        """The weight in float64 with output channel c multiplied by `scale[c]`."""
        weight = self.weight.double()
        if self.node.target not in _TRANSPOSED:
            return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
        # A transposed convolution stores (inputs, outputs / groups, ...): input rows are ordered by group.
        groups = self.outputs // weight.shape[1]
        split = weight.reshape(groups, -1, *weight.shape[1:])
        return (split * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)


def _weighted(gm: fx.GraphModule, node: object) -> _Weighted | None:
    """`node` as a foldable operation: weighted, constants only, float, read by one other."""
    if not isinstance(node, fx.Node) or node.target not in _WEIGHTED or not single_user(node):
        return None
    weight = constant_of(gm, node.args[1])
    bias_node = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    bias = constant_of(gm, bias_node)
    if weight is None or (bias_node is not None and bias is None) or not weight.is_floating_point():
        return None
    rank = len(shape_of(node))
    spatial = 0 if node.target is aten.linear.default else weight.dim() - 2
    axis = rank - 1 - spatial
    return _Weighted(node, weight, bias, shape_of(node)[axis], axis)


def _apply(gm: fx.GraphModule, target: _Weighted, scale: Tensor | None, shift: Tensor | None) -> None:
    """Make `target` compute `scale * y + shift` per output channel (float64 of shape `(outputs,)` or None)."""
    node = target.node
    dtype = target.weight.dtype
    bias = torch.zeros(target.outputs, dtype=torch.float64) if target.bias is None else target.bias.double()
    if scale is not None:
        new = add_constant(gm, path_of(node.args[1]), target.scaled(scale).to(dtype), node)
        node.update_arg(1, new)
        bias = bias * scale
    if shift is not None:
        bias = bias + shift
    if shift is None and target.bias is None:
        return
    path = path_of(node.args[1]).removesuffix(".weight")
    bias_node = add_constant(gm, f"{path}.bias", bias.to(dtype), node)
    node.kwargs = {k: v for k, v in node.kwargs.items() if k != "bias"}
    node.args = (*node.args[:2], bias_node, *node.args[3:])


def fold_batch_norm(gm: fx.GraphModule) -> None:
    """Fold inference batch normalization into the operation before it, or write it as `x * scale + shift`.

    Source: Jacob et al., arXiv:1712.05877, section 3.2; folded in float64.
    """
    for node in calls(gm, *_TRAINING_NORMS):
        raise ModelError(
            "a batch norm uses the statistics of the batch, so it is no function of one input",
            code="EQ-M102",
            place=str(node.meta.get("path") or node.name),
            hint="build the layer with track_running_stats=True and train it",
        )
    for node in calls(gm, *_BATCH_NORMS):
        weight, bias, mean, variance = (constant_of(gm, a) for a in node.args[1:5])
        picks = [u for u in node.users if is_getitem(u)]
        eps = float(node.args[6 if node.target is _BATCH_NORMS[0] else 7])  # type: ignore[arg-type]
        if mean is None or variance is None or any(p.args[1] != 0 for p in picks):
            place = str(node.meta.get("path") or node.name)
            raise ModelError("a batch norm has no constant statistics", code="EQ-M102", place=place)
        scale = (variance.double() + eps).rsqrt()
        scale = scale if weight is None else scale * weight.double()
        shift = -mean.double() * scale
        shift = shift if bias is None else shift + bias.double()
        source = node.args[0]
        assert isinstance(source, fx.Node)
        for pick in picks or [node]:
            _replace_norm(gm, source, pick, scale, shift)


def _replace_norm(gm: fx.GraphModule, source: fx.Node, norm: fx.Node, scale: Tensor, shift: Tensor) -> None:
    """Put `scale * source + shift`, per channel (axis 1), in the place of `norm`."""
    target = _weighted(gm, source)
    if target is not None and target.channel_axis == 1:
        _apply(gm, target, scale, shift)
        supersede(norm, source)
        return
    dtype = source.meta["val"].dtype
    shape = [1, -1] + [1] * (len(shape_of(source)) - 2)
    path = str(norm.meta.get("path") or norm.name)
    factor = add_constant(gm, f"{path}.scale", scale.reshape(shape).to(dtype), norm)
    offset = add_constant(gm, f"{path}.shift", shift.reshape(shape).to(dtype), norm)
    product = call(gm, aten.mul.Tensor, source, factor, before=norm)
    total = call(gm, aten.add.Tensor, product, offset, before=norm)
    product.meta["val"] = total.meta["val"] = norm.meta["val"]
    supersede(norm, total)


def fold_affine(gm: fx.GraphModule) -> None:
    """Fold a product with, or a sum with, one constant per output channel into the weighted operation before it."""
    for node in calls(gm, aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor):
        found = _affine(gm, node)
        if found is None:
            continue
        target, value = found
        if node.target is aten.mul.Tensor:
            _apply(gm, target, value, None)
        elif node.target is aten.div.Tensor:
            _apply(gm, target, 1.0 / value, None)
        else:
            _apply(gm, target, None, value if node.target is aten.add.Tensor else -value)
        supersede(node, target.node)


def _affine(gm: fx.GraphModule, node: fx.Node) -> tuple[_Weighted, Tensor] | None:
    """The operation that `node` scales or shifts, and the constant per channel `(outputs,)` in float64."""
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) < 2:
        return None
    pairs = [(node.args[0], node.args[1])]
    if node.target in (aten.mul.Tensor, aten.add.Tensor):
        pairs.append((node.args[1], node.args[0]))
    for source, other in pairs:
        target = _weighted(gm, source)
        value = torch.tensor(float(other)) if isinstance(other, (int, float)) else constant_of(gm, other)
        if target is None or value is None or shape_of(target.node) != shape_of(node):
            continue
        if node.meta["val"].dtype != target.weight.dtype:
            continue
        trailing = len(shape_of(node)) - 1 - target.channel_axis
        per_channel = value.numel() == 1 or (
            value.numel() == target.outputs
            and value.dim() > trailing
            and value.shape[value.dim() - 1 - trailing] == target.outputs
        )
        if per_channel and (node.target is not aten.div.Tensor or bool((value != 0).all())):
            return target, value.double().reshape(-1).expand(target.outputs)
    return None


def matmul_to_linear(gm: fx.GraphModule) -> None:
    """Write products with a constant matrix as `linear`, all other products as `matmul`.

    Afterwards `linear` always has a constant weight `(outputs, inputs)`, and `mm`, `bmm`, `addmm`, `baddbmm` are gone.
    """
    transposed: dict[str, fx.Node] = {}
    for node in calls(gm, aten.addmm.default, aten.baddbmm.default):
        if node.kwargs.get("alpha", 1) == 1 and node.kwargs.get("beta", 1) == 1:
            product = call(gm, aten.matmul.default, *node.args[1:3], before=node)
            product.meta["val"] = node.meta["val"]
            total = call(gm, aten.add.Tensor, product, node.args[0], before=node)
            total.meta["val"] = node.meta["val"]
            supersede(node, total)
    for node in calls(gm, aten.linear.default):
        if constant_of(gm, node.args[1]) is None:
            _linear_to_matmul(gm, node)
    for node in calls(gm, aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default):
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        weight = constant_of(gm, right)
        if weight is None or weight.dim() != 2 or constant_of(gm, left) is not None:
            if node.target is not aten.matmul.default:
                new = call(gm, aten.matmul.default, left, right, before=node)
                new.meta["val"] = node.meta["val"]
                supersede(node, new)
            continue
        key = str(right.target)
        if key not in transposed:
            path = path_of(right)
            path = path if path.endswith(".weight") else f"{node.meta.get('path') or path}.weight"
            transposed[key] = add_constant(gm, path, weight.t().contiguous(), next(iter(gm.graph.nodes)))
        new = call(gm, aten.linear.default, left, transposed[key], before=node)
        new.meta["val"] = node.meta["val"]
        supersede(node, new)


def _linear_to_matmul(gm: fx.GraphModule, node: fx.Node) -> None:
    """A `linear` whose weight is computed is a matrix product of two activations."""
    source, weight = node.args[:2]
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    assert isinstance(weight, fx.Node)
    turned = call(gm, aten.transpose.int, weight, -2, -1, before=node)
    turned.meta["val"] = weight.meta["val"].transpose(-2, -1)
    new = call(gm, aten.matmul.default, source, turned, before=node)
    new.meta["val"] = node.meta["val"]
    if isinstance(bias, fx.Node):
        product = new
        new = call(gm, aten.add.Tensor, product, bias, before=node)
        new.meta["val"] = node.meta["val"]
    supersede(node, new)
