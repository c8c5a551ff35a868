"""ONNX operators that move, cut, pick, join and create values."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeq.graph.onnx_ops import Function, OnnxNode, operator

# ONNX tensor types by number (TensorProto.DataType). Double precision is computed in single precision.
DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    11: torch.float32,
}


@operator("Reshape")
def _reshape(node: OnnxNode) -> Function:
    goal = list(node.ints(1, "shape") or [])
    shape = node.shape()
    if not node.attr("allowzero", 0):
        goal = [shape[i] if size == 0 else size for i, size in enumerate(goal)]
    return lambda x, *_: x.reshape(goal)


@operator("Flatten")
def _flatten(node: OnnxNode) -> Function:
    axis = int(node.attr("axis", 1))
    axis = axis + node.rank() if axis < 0 else axis
    rows = math.prod(node.shape()[:axis])
    columns = math.prod(node.shape()[axis:])
    return lambda x: x.reshape(rows, columns)


@operator("Squeeze")
def _squeeze(node: OnnxNode) -> Function:
    axes = node.ints(1, "axes")
    shape = node.shape()
    chosen = [i for i, s in enumerate(shape) if s == 1] if axes is None else [node.axis(a) for a in axes]
    goal = [s for i, s in enumerate(shape) if i not in chosen]
    if any(shape[a] != 1 for a in chosen):
        raise node.refuse(f"axes {chosen} of shape {shape} are not all 1")
    return lambda x, *_: x.reshape(goal)


@operator("Unsqueeze")
def _unsqueeze(node: OnnxNode) -> Function:
    axes = node.ints(1, "axes") or []
    goal = list(node.shape())
    rank = len(goal) + len(axes)
    for axis in sorted(node.axis(a, rank) for a in axes):
        goal.insert(axis, 1)
    return lambda x, *_: x.reshape(goal)


@operator("Transpose")
def _transpose(node: OnnxNode) -> Function:
    order = [int(a) for a in node.attr("perm", range(node.rank() - 1, -1, -1))]
    return lambda x: x.permute(order)


@operator("Expand")
def _expand(node: OnnxNode) -> Function:
    goal = list(np.broadcast_shapes(node.shape(), tuple(node.ints(1) or [])))
    return lambda x, *_: x.expand(goal)


@operator("Tile")
def _tile(node: OnnxNode) -> Function:
    repeats = node.ints(1) or []
    return lambda x, *_: x.repeat(repeats)


@operator("Concat")
def _concat(node: OnnxNode) -> Function:
    axis = node.axis(int(node.attr("axis", 1)))
    return lambda *xs: torch.cat(xs, dim=axis)


@operator("Split")
def _split(node: OnnxNode) -> Function:
    axis = node.axis(int(node.attr("axis", 0)))
    sizes = node.ints(1, "split")
    if sizes is None:
        parts = int(node.attr("num_outputs", len(node.outputs)))
        width = math.ceil(node.shape()[axis] / parts)
        sizes = [max(min(width, node.shape()[axis] - i * width), 0) for i in range(parts)]
    chosen = sizes
    return lambda x, *_: torch.split(x, chosen, dim=axis)


@operator("Slice")
def _slice(node: OnnxNode) -> Function:
    starts, ends = node.ints(1, "starts") or [], node.ints(2, "ends") or []
    axes = node.ints(3, "axes")
    axes = list(range(len(starts))) if axes is None else axes
    steps = node.ints(4) or [1] * len(starts)
    cuts: list[tuple[int, range]] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = node.axis(axis)
        cuts.append((axis, range(node.shape()[axis])[slice(start, None if end < -(2**62) else end, step)]))

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        for axis, rows in cuts:
            x = _take(x, axis, rows)
        return x

    return run


def _take(x: Tensor, axis: int, rows: range) -> Tensor:
    """Rows of an arithmetic progression along `axis`; backwards by a flip, as slices only go forwards."""
    if len(rows) == x.shape[axis] and rows.step == 1:
        return x
    forwards = rows if rows.step > 0 else rows[::-1]
    start, stop = forwards.start, forwards[-1] + 1 if len(forwards) else forwards.start
    x = torch.ops.aten.slice.Tensor(x, axis, start, stop, forwards.step)
    return x.flip(axis) if rows.step < 0 and len(rows) > 1 else x


@operator("Gather")
def _gather(node: OnnxNode) -> Function:
    axis = node.axis(int(node.attr("axis", 0)))
    shape, picks = node.shape(0), node.shape(1)
    goal = [*shape[:axis], *picks, *shape[axis + 1 :]]
    known = node.constants[1]
    if known is not None:
        index = known.reshape(-1).to(torch.int64) % max(shape[axis], 1)
        if known.numel() and (int(known.max()) >= shape[axis] or int(known.min()) < -shape[axis]):
            raise node.refuse(f"an index lies outside axis {axis} of shape {shape}")
        rows = index.tolist()
        if not picks:
            return lambda x, _: x.select(axis, rows[0])
        step = rows[1] - rows[0] if len(rows) > 1 else 1
        if rows and step > 0 and rows == list(range(rows[0], rows[-1] + 1, step)):
            cut = range(rows[0], rows[-1] + 1, step)
            return lambda x, _: _take(x, axis, cut).reshape(goal)
        return lambda x, _: x.index_select(axis, index).reshape(goal)
    if axis == 0 and len(shape) == 2:
        return lambda x, i: functional.embedding(i, x)
    return lambda x, i: x.index_select(axis, i.reshape(-1)).reshape(goal)


@operator("GatherElements")
def _gather_elements(node: OnnxNode) -> Function:
    axis, size = node.axis(int(node.attr("axis", 0))), node.shape()[node.axis(int(node.attr("axis", 0)))]
    known = node.constants[1]
    if known is not None:
        index = known.to(torch.int64) % size
        return lambda x, _: torch.gather(x, axis, index)
    return lambda x, i: torch.gather(x, axis, i.to(torch.int64))


@operator("GatherND")
def _gather_nd(node: OnnxNode) -> Function:
    if node.attr("batch_dims", 0):
        raise node.refuse("batch_dims is not supported")
    sizes = node.shape()
    index = node.constant(1)
    columns = [index[..., i] % sizes[i] for i in range(index.shape[-1])]
    return lambda x, _: x[tuple(columns)]


@operator("ScatterND")
def _scatter_nd(node: OnnxNode) -> Function:
    if node.attr("reduction", "none") != "none":
        raise node.refuse("a reduction is not supported")
    sizes = node.shape()
    index = node.constant(1)
    columns = tuple(index[..., i] % sizes[i] for i in range(index.shape[-1]))
    return lambda x, _, updates: torch.index_put(x, columns, updates)


@operator("ScatterElements", "Scatter")
def _scatter_elements(node: OnnxNode) -> Function:
    if node.attr("reduction", "none") != "none":
        raise node.refuse("a reduction is not supported")
    axis = node.axis(int(node.attr("axis", 0)))
    return lambda x, i, updates: torch.scatter(x, axis, i.to(torch.int64), updates)


@operator("Pad")
def _pad(node: OnnxNode) -> Function:
    rank = node.rank()
    pads = node.ints(1, "pads" if node.opset >= 2 else "paddings") or []
    axes = [node.axis(a) for a in (node.ints(3) or range(rank))]
    value = float(node.constant(2).reshape(()).item()) if node.has(2) else float(node.attr("value", 0.0))
    begin, end = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        begin[axis], end[axis] = pads[position], pads[position + len(axes)]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}.get(
        str(node.attr("mode", "constant"))
    )
    if mode is None:
        raise node.refuse(f"mode {node.attr('mode')!r} is not supported")
    first = next((a for a in range(rank) if begin[a] or end[a]), rank)
    if first == rank:
        return lambda x, *_: x
    flat = [p for a in range(rank - 1, first - 1, -1) for p in (begin[a], end[a])]
    if mode == "constant":
        return lambda x, *_: functional.pad(x, flat, value=value)
    if first < 2 or rank not in (3, 4, 5):
        raise node.refuse(f"mode {node.attr('mode')!r} pads axis {first} of {rank}")
    full = [p for a in range(rank - 1, 1, -1) for p in (begin[a], end[a])]
    return lambda x, *_: functional.pad(x, full, mode=mode)


@operator("DepthToSpace", "SpaceToDepth")
def _depth_space(node: OnnxNode) -> Function:
    block = int(node.attr("blocksize"))
    batch, channels, height, width = node.shape()
    if node.op_type == "SpaceToDepth":
        return lambda x: (
            x.reshape(batch, channels, height // block, block, width // block, block)
            .permute(0, 3, 5, 1, 2, 4)
            .reshape(batch, channels * block * block, height // block, width // block)
        )
    depth = channels // (block * block)
    crd = node.attr("mode", "DCR") == "CRD"
    split = [batch, depth, block, block, height, width] if crd else [batch, block, block, depth, height, width]
    order = [0, 1, 4, 2, 5, 3] if crd else [0, 3, 4, 1, 5, 2]
    return lambda x: x.reshape(split).permute(order).reshape(batch, depth, height * block, width * block)


@operator("Shape")
def _shape(node: OnnxNode) -> Function:
    shape = node.shape()[slice(node.attr("start", 0), node.attr("end"))]
    return lambda *_: torch.tensor(shape, dtype=torch.int64)


@operator("Size")
def _size(node: OnnxNode) -> Function:
    count = math.prod(node.shape())
    return lambda *_: torch.tensor(count, dtype=torch.int64)


@operator("ConstantOfShape")
def _constant_of_shape(node: OnnxNode) -> Function:
    value = node.attr("value")
    fill = torch.zeros(1) if value is None else torch.from_numpy(np.array(value))
    goal = node.ints(0) or []
    return lambda *_: fill.reshape(()).expand(goal).clone()


@operator("Range")
def _range(node: OnnxNode) -> Function:
    start, end, step = (node.constant(i).reshape(()).item() for i in range(3))
    return lambda *_: torch.arange(start, end, step, dtype=node.dtypes[0])


@operator("Constant")
def _constant(node: OnnxNode) -> Function:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            value = torch.from_numpy(np.array(node.attributes[name]))
            single = value.to(torch.float32) if "float" in name else value
            return lambda: single
    raise node.refuse(f"attributes {sorted(node.attributes)} are not supported")


@operator("Cast", "CastLike")
def _cast(node: OnnxNode) -> Function:
    dtype = node.dtypes[1] if node.op_type == "CastLike" else DTYPES.get(int(node.attr("to")))
    if dtype is None:
        raise node.refuse(f"type {node.attr('to')} is not supported; export the model in float32")
    return lambda x, *_: x.to(dtype)


@operator("Dropout")
def _dropout(node: OnnxNode) -> Function:
    if len([o for o in node.outputs if o]) > 1:
        raise node.refuse("its mask is used")
    return lambda x, *_: x


@operator("Trilu")
def _trilu(node: OnnxNode) -> Function:
    diagonal = int(node.constant(1).reshape(()).item()) if node.has(1) else 0
    keep = torch.triu if node.attr("upper", 1) else torch.tril
    return lambda x, *_: keep(x, diagonal)


@operator("OneHot")
def _one_hot(node: OnnxNode) -> Function:
    depth = int(node.constant(1).reshape(-1)[0].item())
    off, on = node.constant(2).tolist()
    rank = node.rank() + 1
    axis = node.axis(int(node.attr("axis", -1)), rank)
    line = torch.arange(depth).reshape([depth if a == axis else 1 for a in range(rank)])
    dtype = node.dtypes[2]

    def run(index: Tensor, *_: Tensor | None) -> Tensor:
        place = index.to(torch.int64).unsqueeze(axis)
        hit = torch.logical_or(place == line, place == line - depth)
        return torch.where(hit, torch.tensor(on, dtype=dtype), torch.tensor(off, dtype=dtype))

    return run


@operator("NonZero")
def _non_zero(node: OnnxNode) -> Function:
    found = torch.nonzero(node.constant(0)).t().contiguous()
    return lambda *_: found
