"""Lowering of what lies between products: tables, sums, softmax, norms, means, pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeq.graph.intgraph.arithmetic import NORM_FRACTION, common, dyadic, require_fits, wide
from edgeq.graph.intgraph.builder import Grid, Positions, Value, grid_of, positions
from edgeq.graph.intgraph.context import Context, Reals, arguments, clip_bounds, refused, shape_of
from edgeq.graph.intgraph.graph import (
    Add,
    AveragePool,
    Concat,
    IntTensor,
    MaxPool,
    Mean,
    Mul,
    Norm,
    Requantize,
    Table,
)
from edgeq.graph.intgraph.parts import softmax_of, sum_scaling
from edgeq.graph.intgraph.products import image_of, image_view, window_of
from edgeq.graph.kinds import op_kind


def lower_clip(context: Context, node: fx.Node) -> Value:
    """ReLU and its kin: a change of grid that saturates earlier."""
    value, grid = context.value(node, 0), context.grid(node)
    if value.factor != 1.0 or not context.builder.settled(value):
        value = context.builder.dense(value, node.name)
    return context.builder.dense(replace(value, grid=grid.narrowed(*clip_bounds(node))), node.name)


def lower_table(context: Context, node: fx.Node) -> Value:
    """Any function of one number: exact for 8-bit codes, interpolated for 16-bit ones."""
    value, grid = context.settled(node, 0), context.grid(node)
    source = context.builder.tensors[value.tensor]
    codes = -32768 + 128 * np.arange(513) if source.wide else np.arange(-128, 128)
    reals = torch.from_numpy((codes - source.zero_point) * source.scale)
    target: Any = node.target
    with torch.no_grad():
        results = target(reals, *node.args[1:], **node.kwargs).numpy() / grid.scale + grid.zero_point
    if not np.isfinite(results).all():
        raise refused(node, "it is infinite or undefined for some of the values it can read")
    fraction = 8 if source.wide and not grid.wide else 0
    unit = 1 << fraction
    if source.wide:
        values = np.clip(np.rint(results * unit), -32768, 32767)
    else:
        values = np.clip(np.rint(results), grid.low, grid.high)
    output = context.builder.new(node.name, source.shape, grid)
    made = context.builder.add(Table(node.name, (source.name,), output.name, values.astype(np.int64), fraction))
    return Value(made.tensor, value.view, grid)


def lower_scale(context: Context, node: fx.Node) -> Value:
    """Product: with a constant a change of grid, with another tensor a kernel."""
    grid = context.grid(node)
    constants = [context.constant(node, index) for index in (0, 1)]
    if constants[0] is None and constants[1] is None:
        return _lower_product(context, node, grid)
    index = 0 if constants[1] is not None else 1
    factor = constants[1 - index]
    assert factor is not None
    value = context.value(node, index)
    if factor.size == 1:
        if not context.builder.settled(value):
            value = context.builder.dense(value, node.name)
        return Value(value.tensor, value.view.reshape(shape_of(node)), grid, float(factor.item()))
    value = context.builder.dense(value, node.name)
    source = context.builder.tensors[value.tensor]
    held = periodic(in_memory_order(factor, value.view))
    run = len(held) // len(np.flatnonzero(np.diff(held, prepend=np.nan)))
    by_row = run > 1 and len(held) % run == 0 and bool((held.reshape(-1, run) == held[::run, None]).all())
    factors = held[::run] if by_row else held
    output = context.builder.new(node.name, source.shape, grid)
    scaling = dyadic(source.scale * factors / grid.scale, source.reach, node.name)
    inner = (len(factors), run) if by_row else (len(held),)
    dims = (source.size // len(held), *inner)
    strides = (len(held), run, 1) if by_row else (len(held), 1)
    made = Requantize(node.name, (source.name,), output.name, dims, strides, 0, scaling, by_row)
    context.builder.add(made)
    return Value(output.name, value.view, grid)


def _lower_product(context: Context, node: fx.Node, grid: Grid) -> Value:
    first, second, view, _ = _aligned(context, node)
    scaling = wide(first.scale * second.scale / grid.scale, first.reach * second.reach, node.name)
    output = context.builder.new(node.name, first.shape, grid)
    context.builder.add(Mul(node.name, (first.name, second.name), output.name, scaling))
    return Value(output.name, view, grid)


def lower_sum(context: Context, node: fx.Node) -> Value:
    """Sum or difference of two tensors, one of which may be constant or repeat."""
    if node.kwargs.get("alpha", 1) != 1:
        raise refused(node, "its second operand is scaled by alpha", "multiply first in the model")
    grid = context.grid(node)
    first, second, view, swapped = _aligned(context, node)
    signs = [1.0, -1.0 if op_kind(node) == "sub" else 1.0]
    if swapped:
        signs.reverse()
    scaling = sum_scaling((first, second), signs, grid, node.name)
    output = context.builder.new(node.name, first.shape, grid)
    context.builder.add(Add(node.name, (first.name, second.name), output.name, scaling))
    return Value(output.name, view, grid)


def _aligned(context: Context, node: fx.Node) -> tuple[IntTensor, IntTensor, Positions, bool]:
    """Both operands with equal memory order, the one that repeats second; the result's view; whether they swapped."""
    shape = shape_of(node)
    constants = [context.constant(node, index) for index in (0, 1)]
    if any(c is not None for c in constants):
        index = 0 if constants[1] is not None else 1
        value = context.settled(node, index)
        if value.view.shape != shape:
            raise refused(node, "a constant is larger than what it is combined with")
        codes, grid = context.codes(context.source(node, 1 - index))
        held = periodic(in_memory_order(codes, value.view))
        other = context.builder.constant(context.source(node, 1 - index).name, held.astype(np.int64), grid)
        return context.builder.tensors[value.tensor], other, value.view, index == 1
    first, second = (context.settled(node, index) for index in (0, 1))
    swapped = second.view.shape == shape and first.view.shape != shape
    if swapped:
        first, second = second, first
    if first.view.shape != shape:
        raise refused(node, f"neither operand has the shape {shape} of the result")
    builder = context.builder
    spread = in_memory_order(second.view, first.view)
    period = second.view.size
    if not bool((spread.reshape(-1, period) == np.arange(period)).all()):
        if second.view.shape != shape:
            raise refused(node, f"kernels do not repeat {second.view.shape} over {shape}")
        first = Value(builder.demand(first, place=node.name), positions(shape), first.grid)
        second = Value(builder.demand(second, place=node.name), positions(shape), second.grid)
    return builder.tensors[first.tensor], builder.tensors[second.tensor], first.view, swapped


def in_memory_order(operand: NDArray[Any], view: Positions) -> NDArray[Any]:
    """`operand`, broadcast to the shape of `view`, in the order in which the buffer of `view` is walked."""
    result = np.empty(view.size, operand.dtype)
    result[view.ravel()] = np.broadcast_to(operand, view.shape).ravel()
    return result


def periodic(values: NDArray[Any]) -> NDArray[Any]:
    """The shortest start of `values` that gives all of them when it is repeated."""
    for period in range(1, len(values)):
        if len(values) % period == 0 and bool((values.reshape(-1, period) == values[:period]).all()):
            return values[:period]
    return values


def lower_softmax(context: Context, node: fx.Node) -> Value:
    """Softmax over the last axis."""
    grid, shape = context.grid(node), shape_of(node)
    if int(arguments(node, 1, dim=-1)["dim"]) % len(shape) != len(shape) - 1:
        raise refused(node, "kernels take the softmax of the last axis", "move the axis to the end in the model")
    source = context.builder.tensors[context.builder.demand(context.value(node, 0), place=node.name)]
    output = context.builder.new(node.name, shape, grid)
    return context.builder.add(softmax_of(node.name, source, output, shape[-1]), shape)


def lower_norm(context: Context, node: fx.Node) -> Value:
    """LayerNorm and RMSNorm over the last axis."""
    grid, shape = context.grid(node), shape_of(node)
    centred = op_kind(node) == "layer_norm"
    defaults: dict[str, Any] = {"weight": None, "bias": None} if centred else {"weight": None}
    given = arguments(node, 2, **defaults, eps=1e-5 if centred else None)
    normalized = node.args[1]
    if not isinstance(normalized, Sequence) or len(normalized) != 1:
        raise refused(node, "kernels normalize the last axis only")
    n = shape[-1]
    source = context.builder.tensors[context.builder.demand(context.value(node, 0), place=node.name)]
    epsilon = float(torch.finfo(torch.float32).eps if given["eps"] is None else given["eps"])
    added = max(1, round(epsilon * n * n / source.scale**2))
    largest = 32768 if centred else source.reach
    require_fits(n * n * largest * largest + added, 63, node.name, "a sum of squares")
    require_fits(n * 65536, 31, node.name, "a difference from the mean")
    gamma = _of_channels(context, node, 2, given["weight"], 1.0)
    beta = _of_channels(context, node, 3, given.get("bias"), 0.0)
    bound = math.ceil(math.sqrt(n) * (1 << NORM_FRACTION) * 1.001) + 2
    gain = common(gamma / grid.scale / (1 << NORM_FRACTION), bound, node.name)
    places = int(gain.shift[0]) - 32
    offset = np.rint((beta / grid.scale + grid.zero_point) * (1 << places)).astype(np.int64) + (1 << (places - 1))
    width = max(len(gain.multiplier), len(offset))
    gain = replace(gain, multiplier=np.resize(gain.multiplier, width), shift=np.resize(gain.shift, width))
    offset = np.resize(offset, width)
    high = ((bound << gain.left) * np.abs(gain.multiplier) >> 32) + np.abs(offset) + 1
    require_fits(int(high.max()), 31, node.name, "a normalized value")
    output = context.builder.new(node.name, shape, grid)
    rows = source.size // n
    made = Norm(node.name, (source.name,), output.name, rows, n, centred, added, gain, offset)
    return context.builder.add(made, shape)


def _of_channels(context: Context, node: fx.Node, index: int, given: object, default: float) -> Reals:
    """Values of a norm's weight or bias, on their grid; the default where it has none."""
    if given is None:
        return np.array([default])
    values = context.constant(node, index)
    if values is None:
        raise refused(node, "its weight or bias is computed")
    return values.ravel()


def lower_mean(context: Context, node: fx.Node) -> Value:
    """Mean over axes that lie side by side in memory."""
    value, shape = context.value(node, 0), shape_of(node)
    axes = {int(a) % value.view.ndim for a in arguments(node, 1, dim=range(value.view.ndim))["dim"]}
    return _mean_over(context, node, value, axes, shape)


def _mean_over(context: Context, node: fx.Node, value: Value, axes: set[int], shape: tuple[int, ...]) -> Value:
    natural = list(range(value.view.ndim))
    memory = sorted(natural, key=lambda axis: -abs(value.view.strides[axis]))
    sizes = value.view.shape
    for order in (memory, natural):
        inside = [position for position, axis in enumerate(order) if axis in axes and sizes[axis] > 1]
        if not inside or inside[-1] - inside[0] + 1 == len(
            [a for a in order[inside[0] : inside[-1] + 1] if a in axes or sizes[a] == 1]
        ):
            break
    else:
        raise refused(node, "the axes of its mean do not lie side by side", "take means over neighbouring axes")
    source = context.builder.tensors[context.builder.demand(value, order, node.name)]
    first, last = (inside[0], inside[-1] + 1) if inside else (0, 0)
    outer = math.prod(sizes[a] for a in order[:first])
    reduced = math.prod(sizes[a] for a in order[first:last])
    inner = math.prod(sizes[a] for a in order[last:])
    grid = context.grid(node)
    bound = reduced * source.reach
    require_fits(bound, 31, node.name, "a sum")
    scaling = dyadic(source.scale / grid.scale / reduced, bound, node.name)
    held = [1 if a in axes else sizes[a] for a in order]
    output = context.builder.new(node.name, held, grid)
    context.builder.add(Mean(node.name, (source.name,), output.name, outer, reduced, inner, scaling))
    view = positions(held).transpose(np.argsort(order)).reshape(shape)
    return Value(output.name, view, grid)


def lower_pool(context: Context, node: fx.Node) -> Value:
    """Max and average pooling of an image."""
    grid, shape, kind = context.grid(node), shape_of(node), op_kind(node)
    if kind == "adaptive_avg_pool2d":
        if shape[2:] != (1, 1):
            raise refused(node, f"kernels pool to 1 x 1, not to {shape[2:]}")
        return _mean_over(context, node, context.value(node, 0), {2, 3}, shape)
    image = image_of(context, node)
    geometry = arguments(node, 2, stride=None, padding=0, **({"dilation": 1} if kind == "max_pool2d" else {}))
    geometry["stride"] = geometry["stride"] or node.args[1]
    window = window_of(context, node, node.args[1], geometry)
    held = (1, *shape[2:], shape[1])
    if kind == "max_pool2d":
        # The largest code stands for the largest real on any grid: another one may follow.
        output = context.builder.new(node.name, held, grid_of(image))
        context.builder.add(MaxPool(node.name, (image.name,), output.name, window))
        return Value(output.name, image_view(shape), grid)
    if window.padding != (0, 0):
        raise refused(node, "kernels average without a border")
    area = window.kernel[0] * window.kernel[1]
    bound = area * image.reach
    scaling = dyadic(image.scale / grid.scale / area, bound, node.name)
    output = context.builder.new(node.name, held, grid)
    context.builder.add(AveragePool(node.name, (image.name,), output.name, window, scaling))
    return Value(output.name, image_view(shape), grid)


def lower_repeat(context: Context, node: fx.Node) -> Value:
    """Nearest enlargement of an image by whole numbers: a gather that stands still along two of its axes."""
    shape, grid = shape_of(node), context.grid(node)
    image = image_of(context, node)
    _, height, width, channels = image.shape if len(image.shape) == 4 else (1, *image.shape)
    rows, columns = shape[2:]
    if rows % height or columns % width:
        raise refused(node, f"kernels repeat pixels whole times, not {height} x {width} to {rows} x {columns}")
    dims = (height, rows // height, width, columns // width, channels)
    strides = (width * channels, 0, channels, 0, 1)
    output = context.builder.new(node.name, (1, rows, columns, channels), grid_of(image))
    context.builder.add(Requantize(node.name, (image.name,), output.name, dims, strides, 0, None))
    return Value(output.name, image_view(shape), grid)


def lower_concat(context: Context, node: fx.Node) -> Value:
    """Tensors side by side along an axis."""
    grid, shape, builder = context.grid(node), shape_of(node), context.builder
    parts = node.args[0]
    assert isinstance(parts, Sequence)
    values = [context.value_of(context.behind(node, p)) for p in parts if isinstance(p, fx.Node)]
    axis = int(arguments(node, 1, dim=0)["dim"]) % len(shape)
    values = [builder.dense(v, node.name) for v in values]
    order = sorted(range(len(shape)), key=lambda a: -abs(values[0].view.strides[a]))
    names = tuple(builder.demand(replace(v, grid=grid), order, node.name) for v in values)
    place = order.index(axis)
    outer = math.prod(shape[a] for a in order[:place])
    sizes = tuple(builder.tensors[name].size // outer for name in names)
    held = [shape[a] for a in order]
    output = builder.new(node.name, held, grid)
    builder.add(Concat(node.name, names, output.name, outer, sizes))
    return Value(output.name, positions(held).transpose(np.argsort(order)), grid)
