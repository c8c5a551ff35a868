"""Lowering of convolutions, linear layers and matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from edgeq.graph.intgraph.arithmetic import dyadic, require_fits
from edgeq.graph.intgraph.builder import Grid, Value, positions
from edgeq.graph.intgraph.context import Context, arguments, clip_bounds, refused, shape_of
from edgeq.graph.intgraph.graph import Conv, Depthwise, FullyConnected, IntTensor, MatMul, Weights, Window
from edgeq.graph.intgraph.parts import layer_weights
from edgeq.spec import codes_hash

IMAGE = (0, 2, 3, 1)
"""Axes of `(1, C, H, W)` as images lie in memory."""


def pair(value: Any) -> tuple[int, int]:
    """Both numbers of a geometry argument that may be one number."""
    numbers = list(value) if isinstance(value, Sequence) else [value]
    return int(numbers[0]), int(numbers[-1])


def image_of(context: Context, node: fx.Node) -> IntTensor:
    """The image that `node` reads, in memory order.

    Raises:
        ModelError: EQ-M500, it is no single image.
    """
    value = context.value(node, 0)
    if value.view.ndim != 4 or value.view.shape[0] != 1:
        raise refused(node, f"it reads {value.view.shape}, kernels read one image (1, C, H, W)")
    return context.builder.tensors[context.builder.demand(value, IMAGE, node.name)]


def image_view(shape: Sequence[int]) -> Any:
    """View `(1, C, H, W)` of a buffer that holds an image in memory order."""
    _, channels, height, width = shape
    return positions((1, height, width, channels)).transpose(0, 3, 1, 2)


def window_of(context: Context, node: fx.Node, kernel: Any, geometry: dict[str, Any]) -> Window:
    """Geometry of a convolution or pooling of the image that `node` reads."""
    _, channels, height, width = context.value(node, 0).view.shape
    sizes = [pair(geometry.get(key, 1)) for key in ("stride", "padding", "dilation")]
    window = Window(height, width, channels, pair(kernel), *sizes)
    if window.output != shape_of(node)[2:]:
        raise refused(node, f"kernels give {window.output} where PyTorch gives {shape_of(node)[2:]}")
    return window


def weights_of(context: Context, node: fx.Node, source: IntTensor, grid: Grid, order: Sequence[int]) -> Weights:
    """Weights of a layer for the kernels, every sum proved to fit.

    Args:
        context: The lowering.
        node: The layer.
        source: What it reads.
        grid: Of its result.
        order: Memory order of the weight's axes after the first.

    Raises:
        ModelError: EQ-M500 for 16-bit inputs, EQ-M501 where a sum could overflow.
    """
    if source.wide:
        raise refused(
            node, "kernels multiply 8-bit codes, and it reads 16", "export with activations of at most 8 bits"
        )
    stored, scale, bits = context.weight(node)
    context.check_weight(node, codes_hash(stored))
    codes = stored.transpose(0, *order).reshape(len(stored), -1)
    steps = np.broadcast_to(source.scale * scale, len(codes))
    given = context.float_constant(node, 2)
    real_bias = np.zeros(len(codes)) if given is None else given
    bias = np.rint(real_bias / steps).astype(np.int64)
    return layer_weights(codes, bias, steps, source, grid, bits, node.name)


def _result_grid(context: Context, node: fx.Node) -> Grid:
    """The grid of a layer's result, cut off where the activation it absorbs cuts off."""
    carrier = context.carrier(node)
    grid = context.grid(carrier)
    return grid if carrier is node else grid.narrowed(*clip_bounds(carrier))


def lower_linear(context: Context, node: fx.Node) -> Value:
    """`x @ weight.T + bias` over the last axis."""
    grid, shape = _result_grid(context, node), shape_of(node)
    source = context.builder.tensors[context.builder.demand(context.value(node, 0), place=node.name)]
    weights = weights_of(context, node, source, grid, (1,))
    rows = source.size // weights.codes.shape[1]
    output = context.builder.new(node.name, shape, grid)
    return context.builder.add(FullyConnected(node.name, (source.name,), output.name, rows, weights), shape)


def lower_conv(context: Context, node: fx.Node) -> Value:
    """Convolution, plain or depthwise."""
    grid, shape, image = _result_grid(context, node), shape_of(node), image_of(context, node)
    geometry = arguments(node, 3, stride=1, padding=0, dilation=1, groups=1)
    outputs, inner, *kernel = context.weight(node)[0].shape
    groups = int(geometry["groups"])
    window = window_of(context, node, kernel, geometry)
    if groups == 1:
        kind: type[Conv] | type[Depthwise] = Conv
        weights = weights_of(context, node, image, grid, (2, 3, 1))
    elif groups == window.channels == outputs and inner == 1:
        kind = Depthwise
        weights = weights_of(context, node, image, grid, (2, 3, 1))
        weights = Weights(weights.codes.T.copy(), weights.bias, weights.scaling, 8)
    else:
        raise refused(node, f"kernels have 1 group or one a channel, not {groups}", "use depthwise convolutions")
    output = context.builder.new(node.name, (1, *shape[2:], shape[1]), grid)
    made = context.builder.add(kind(node.name, (image.name,), output.name, window, weights))
    return Value(made.tensor, image_view(shape), made.grid)


def lower_matmul(context: Context, node: fx.Node) -> Value:
    """Matrix product of two computed operands, over equal batch axes."""
    grid, shape = context.grid(node), shape_of(node)
    first, second = context.value(node, 0), context.value(node, 1)
    if min(first.view.ndim, second.view.ndim) < 2 or first.view.shape[:-2] != second.view.shape[:-2]:
        raise refused(node, f"kernels want equal batches, not {first.view.shape} and {second.view.shape}")
    axes = list(range(second.view.ndim))
    names = (
        context.builder.demand(first, place=node.name),
        context.builder.demand(second, [*axes[:-2], axes[-1], axes[-2]], node.name),
    )
    left, right = (context.builder.tensors[name] for name in names)
    if left.wide or right.wide:
        raise refused(
            node, "kernels multiply 8-bit codes, and it reads 16", "export with activations of at most 8 bits"
        )
    rows, inner, columns = first.view.shape[-2], first.view.shape[-1], second.view.shape[-1]
    # Kernels subtract the left zero point from codes or multiply codes as they are, and tell what zero points do from
    # sums of rows: whatever the order, what is on the way stays below 256 times 256 a product.
    require_fits(inner << 16, 31, node.name, "a sum of products")
    scaling = dyadic(left.scale * right.scale / grid.scale, inner * left.reach * right.reach, node.name)
    output = context.builder.new(node.name, shape, grid)
    batch = left.size // (rows * inner)
    return context.builder.add(MatMul(node.name, names, output.name, batch, rows, inner, columns, scaling), shape)
