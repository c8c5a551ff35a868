"""Rewrites that exporters share: the same function in float, in operations that have integer kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from edgeq.graph.rewrite import add_constant, aten, call, constant_of, shape_of, single_user, supersede
from edgeq.graph.transforms.projections import is_move


def hoist_relu(graph: fx.GraphModule, node: fx.Node) -> None:
    """Move a ReLU up to the layer it belongs to, past operations that only move values."""
    source = node.args[0]
    while is_move(source) and isinstance(source, fx.Node) and single_user(source):
        source = source.args[0]
    layer = isinstance(source, fx.Node) and source.target in (aten.conv2d.default, aten.linear.default)
    if not isinstance(source, fx.Node) or source is node.args[0] or not layer or not single_user(source):
        return
    follower = next(iter(source.users))
    hoisted = call(graph, aten.relu.default, source, before=follower, like=node)
    follower.replace_input_with(source, hoisted)
    moved = node.args[0]
    assert isinstance(moved, fx.Node)
    supersede(node, moved)


def split_silu(graph: fx.GraphModule, node: fx.Node) -> None:
    """SiLU -> `x * sigmoid(x)`: both have integer kernels where SiLU has none."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    gate = call(graph, aten.sigmoid.default, source, before=node)
    supersede(node, call(graph, aten.mul.Tensor, source, gate, before=node))


def to_subpixel(graph: fx.GraphModule, node: fx.Node) -> None:
    """Transposed convolution -> convolution with s*s times the channels, depth to space, crop (Shi et al., 2016).

    Output row `y` reads input row `i` through tap `k = y + p - s*i`. Writing `y + p = s*q + r` gives `k = r + s*t` and
    `i = q - t`: for each phase `r` an ordinary convolution with `T = ceil(K / s)` taps over the input padded by
    `T - 1`. All phases together have the multiplications of the transposed convolution when s divides K.
    """
    weight = constant_of(graph, node.args[1])
    stride, padding, groups, dilation = _geometry(node)
    if weight is None or groups != 1 or dilation != (1, 1) or stride[0] != stride[1] or stride[0] == 1:
        return
    s, source, bias = stride[0], node.args[0], node.args[2] if len(node.args) > 2 else None
    if not isinstance(source, fx.Node):
        return
    phases, taps = subpixel_weight(weight, s)
    batch, channels, height, width = shape_of(node)
    if (height + padding[0] > s * (shape_of(source)[2] + taps[0] - 1)) or (
        width + padding[1] > s * (shape_of(source)[3] + taps[1] - 1)
    ):
        return  # output padding reaches beyond the last tap
    kernel = add_constant(graph, f"{node.name}_subpixel_weight", phases, node)
    repeated = None
    if isinstance(bias, fx.Node):
        value = constant_of(graph, bias)
        if value is None:
            return
        repeated = add_constant(graph, f"{node.name}_subpixel_bias", value.repeat(s * s), node)
    rows, cols = shape_of(source)[2] + taps[0] - 1, shape_of(source)[3] + taps[1] - 1
    border = [taps[0] - 1, taps[1] - 1]
    whole = call(graph, aten.conv2d.default, source, kernel, repeated, [1, 1], border, before=node)
    whole = call(graph, aten.reshape.default, whole, [batch, s, s, channels, rows, cols], before=node)
    whole = call(graph, aten.permute.default, whole, [0, 3, 4, 1, 5, 2], before=node)
    whole = call(graph, aten.reshape.default, whole, [batch, channels, rows * s, cols * s], before=node)
    for axis, (start, size) in enumerate(zip(padding, (height, width), strict=True), start=2):
        whole = call(graph, aten.slice.Tensor, whole, axis, start, start + size, before=node)
    supersede(node, whole)


def subpixel_weight(weight: Tensor, stride: int) -> tuple[Tensor, tuple[int, int]]:
    """The convolution weight of a transposed one.

    Args:
        weight: `(I, O, KH, KW)`.
        stride: Of both axes.

    Returns:
        Weight `(stride * stride * O, I, TH, TW)`, channels ordered by phase row, phase column, output channel; and
        the taps `(TH, TW)`.
    """
    inputs, outputs, *kernel = weight.shape
    taps = (-(-kernel[0] // stride), -(-kernel[1] // stride))
    padded = weight.new_zeros(inputs, outputs, taps[0] * stride, taps[1] * stride)
    padded[:, :, : kernel[0], : kernel[1]] = weight
    # (I, O, TH, s, TW, s) -> phases first, taps reversed because a convolution correlates.
    phases = padded.reshape(inputs, outputs, taps[0], stride, taps[1], stride).permute(3, 5, 1, 0, 2, 4).flip(4, 5)
    return phases.reshape(stride * stride * outputs, inputs, *taps).contiguous(), taps


def _geometry(node: fx.Node) -> tuple[tuple[int, int], tuple[int, int], int, tuple[int, int]]:
    """Stride, padding, groups and dilation of an `aten.conv_transpose2d` node (output padding shows in its shape)."""
    defaults: list[Any] = [[1, 1], [0, 0], [0, 0], 1, [1, 1]]
    given = list(node.args[3:])
    stride, padding, _, groups, dilation = given + defaults[len(given) :]

    def pair(value: Any) -> tuple[int, int]:
        numbers = list(value) if isinstance(value, (list, tuple)) else [value]
        return (int(numbers[0]), int(numbers[-1]))

    return pair(stride), pair(padding), int(groups), pair(dilation)
