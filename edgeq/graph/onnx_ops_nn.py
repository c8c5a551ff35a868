"""ONNX operators that compute with weights, windows and statistics: convolution, products, pooling, norms, resizing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgeq.graph.onnx_ops import Function, OnnxNode, operator

_CONVOLUTION: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
Pads = tuple[list[int], list[int]]


def _spatial(node: OnnxNode) -> int:
    """Number of spatial axes, 1 to 3."""
    count = node.rank() - 2
    if count not in _CONVOLUTION:
        raise node.refuse(f"{count} spatial axes; 1 to 3 are supported")
    return count


def _window_pads(node: OnnxNode, kernel: list[int], strides: list[int], dilations: list[int]) -> Pads:
    """Padding at the begin and at the end of each spatial axis, from `pads` or `auto_pad`."""
    count = len(kernel)
    mode = node.attr("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = [int(p) for p in node.attr("pads", [0] * (2 * count))]
        return pads[:count], pads[count:]
    if mode == "VALID":
        return [0] * count, [0] * count
    begin, end = [], []
    for size, k, s, d in zip(node.shape()[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin, end


def _pad_list(begin: list[int], end: list[int]) -> list[int]:
    """Argument of `functional.pad`: pairs from the last axis to the first."""
    return [p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair]


def _ints(node: OnnxNode, name: str, default: list[int]) -> list[int]:
    """Integer list attribute."""
    return [int(v) for v in node.attr(name, default)]


@operator("Conv")
def _conv(node: OnnxNode) -> Function:
    count = _spatial(node)
    kernel = list(node.shape(1)[2:])
    strides, dilations = _ints(node, "strides", [1] * count), _ints(node, "dilations", [1] * count)
    groups = int(node.attr("group", 1))
    begin, end = _window_pads(node, kernel, strides, dilations)
    compute = _CONVOLUTION[count]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if begin == end:
            return compute(x, weight, bias, strides, begin, dilations, groups)
        return compute(functional.pad(x, _pad_list(begin, end)), weight, bias, strides, 0, dilations, groups)

    return run


@operator("ConvTranspose")
def _conv_transpose(node: OnnxNode) -> Function:
    count = _spatial(node)
    kernel = list(node.shape(1)[2:])
    strides, dilations = _ints(node, "strides", [1] * count), _ints(node, "dilations", [1] * count)
    extra = _ints(node, "output_padding", [0] * count)
    groups = int(node.attr("group", 1))
    sizes = node.shape()[2:]
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)]
    begin, end = _transposed_pads(node, full, extra, strides)
    compute = _TRANSPOSED[count]
    wanted = [f + e - b - z for f, e, b, z in zip(full, extra, begin, end, strict=True)]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if begin == end and min(begin) >= 0:
            return compute(x, weight, bias, strides, begin, extra, groups, dilations)
        y = compute(x, weight, bias, strides, 0, extra, groups, dilations)
        for axis, (start, size) in enumerate(zip(begin, wanted, strict=True)):
            y = y.narrow(axis + 2, start, size)
        return y

    return run


def _transposed_pads(node: OnnxNode, full: list[int], extra: list[int], strides: list[int]) -> Pads:
    """What a transposed convolution cuts off at the begin and the end of each axis."""
    count = len(full)
    mode, shape = node.attr("auto_pad", "NOTSET"), node.attr("output_shape")
    if shape is None and mode in ("NOTSET", "", "VALID"):
        pads = _ints(node, "pads", [0] * (2 * count)) if mode != "VALID" else [0] * (2 * count)
        return pads[:count], pads[count:]
    sizes = node.shape()[2:]
    goal = [n * s for n, s in zip(sizes, strides, strict=True)] if shape is None else [int(v) for v in shape][-count:]
    total = [f + e - g for f, e, g in zip(full, extra, goal, strict=True)]
    if min(total) < 0:
        raise node.refuse(f"output_shape {goal} is larger than the operation yields")
    small = [t // 2 for t in total]
    large = [t - t // 2 for t in total]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


@operator("MatMul")
def _matmul(node: OnnxNode) -> Function:
    return torch.matmul


@operator("Gemm")
def _gemm(node: OnnxNode) -> Function:
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    turn_a, turn_b = bool(node.attr("transA", 0)), bool(node.attr("transB", 0))

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        b = b * alpha if alpha != 1.0 else b
        y = torch.matmul(a.t() if turn_a else a, b.t() if turn_b else b)
        if c is None or beta == 0.0:
            return y
        return y + (c * beta if beta != 1.0 else c)

    return run


@operator("Einsum")
def _einsum(node: OnnxNode) -> Function:
    equation = str(node.attr("equation")).replace(" ", "")
    return lambda *xs: torch.einsum(equation, *xs)


@operator("MaxPool")
def _max_pool(node: OnnxNode) -> Function:
    count = _spatial(node)
    if len([o for o in node.outputs if o]) > 1 or node.attr("storage_order", 0):
        raise node.refuse("the indices of the maxima are not supported")
    kernel = _ints(node, "kernel_shape", [])
    strides, dilations = _ints(node, "strides", [1] * count), _ints(node, "dilations", [1] * count)
    begin, end = _window_pads(node, kernel, strides, dilations)
    ceil = bool(node.attr("ceil_mode", 0))
    compute = _MAX_POOL[count]
    simple = begin == end and all(2 * p <= k for p, k in zip(begin, kernel, strict=True))

    def run(x: Tensor) -> Tensor:
        if simple:
            return compute(x, kernel, strides, begin, dilations, ceil)
        lowest = torch.finfo(x.dtype).min
        padded = functional.pad(x, _pad_list(begin, end), value=lowest)
        return compute(padded, kernel, strides, 0, dilations, ceil)

    return run


@operator("AveragePool")
def _average_pool(node: OnnxNode) -> Function:
    count = _spatial(node)
    kernel, strides = _ints(node, "kernel_shape", []), _ints(node, "strides", [1] * count)
    if any(d != 1 for d in _ints(node, "dilations", [1] * count)):
        raise node.refuse("dilated averaging is not supported")
    begin, end = _window_pads(node, kernel, strides, [1] * count)
    ceil, whole = bool(node.attr("ceil_mode", 0)), bool(node.attr("count_include_pad", 0))
    compute = _AVERAGE_POOL[count]
    if begin == end and all(2 * p <= k for p, k in zip(begin, kernel, strict=True)):
        return lambda x: compute(x, kernel, strides, begin, ceil, whole)
    pads, sizes = _pad_list(begin, end), node.shape()[2:]

    def run(x: Tensor) -> Tensor:
        y = compute(functional.pad(x, pads), kernel, strides, 0, ceil)
        if whole:
            return y
        inside = functional.pad(torch.ones(1, 1, *sizes), pads)
        return y * compute(inside, kernel, strides, 0, ceil).reciprocal()

    return run


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: OnnxNode) -> Function:
    axes = list(range(2, node.rank()))
    if node.op_type == "GlobalMaxPool":
        return lambda x: torch.amax(x, dim=axes, keepdim=True)
    return lambda x: torch.mean(x, dim=axes, keepdim=True)


@operator("BatchNormalization")
def _batch_norm(node: OnnxNode) -> Function:
    eps = float(node.attr("epsilon", 1e-5))
    if node.attr("training_mode", 0) or len([o for o in node.outputs if o]) > 1:
        raise node.refuse("it is in training mode; export the model in evaluation mode")
    return lambda x, scale, bias, mean, var: functional.batch_norm(x, mean, var, scale, bias, False, 0.0, eps)


@operator("InstanceNormalization")
def _instance_norm(node: OnnxNode) -> Function:
    eps = float(node.attr("epsilon", 1e-5))
    return lambda x, scale, bias: functional.instance_norm(x, weight=scale, bias=bias, eps=eps)


@operator("GroupNormalization")
def _group_norm(node: OnnxNode) -> Function:
    # Opset 21 and later; the form of opset 18, with one scale per group, is withdrawn and refused by the checker.
    groups, eps = int(node.attr("num_groups")), float(node.attr("epsilon", 1e-5))
    return lambda x, scale, bias: functional.group_norm(x, groups, scale, bias, eps)


@operator("LayerNormalization", "RMSNormalization")
def _layer_norm(node: OnnxNode) -> Function:
    axis, eps = node.axis(int(node.attr("axis", -1))), float(node.attr("epsilon", 1e-5))
    if len([o for o in node.outputs if o]) > 1:
        raise node.refuse("its mean and deviation are used as outputs")
    shape = list(node.shape()[axis:])
    if node.op_type == "RMSNormalization":
        return lambda x, scale: functional.rms_norm(x, shape, scale.expand(shape), eps)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), eps)

    return run


@operator("LpNormalization")
def _lp_norm(node: OnnxNode) -> Function:
    axis, p = node.axis(int(node.attr("axis", -1))), int(node.attr("p", 2))
    if p == 1:
        return lambda x: x / x.abs().sum(dim=axis, keepdim=True)
    return lambda x: x / (x * x).sum(dim=axis, keepdim=True).sqrt()


@operator("LRN")
def _local_response_norm(node: OnnxNode) -> Function:
    size = int(node.attr("size"))
    if size % 2 == 0:
        raise node.refuse("an even window is not supported")
    alpha, beta, k = float(node.attr("alpha", 1e-4)), float(node.attr("beta", 0.75)), float(node.attr("bias", 1.0))
    return lambda x: functional.local_response_norm(x, size, alpha, beta, k)


@operator("GridSample")
def _grid_sample(node: OnnxNode) -> Function:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = str(node.attr("mode", "bilinear"))
    padding, corners = str(node.attr("padding_mode", "zeros")), bool(node.attr("align_corners", 0))
    return lambda x, grid: functional.grid_sample(x, grid, names.get(mode, mode), padding, corners)


@operator("Resize", "Upsample")
def _resize(node: OnnxNode) -> Function:
    rank, shape = node.rank(), node.shape()
    sizes, scales = _resize_goal(node)
    mode = str(node.attr("mode", "nearest"))
    if sizes == list(shape):
        return lambda x, *_: x
    if mode == "nearest":
        return _resize_nearest(node, sizes, scales)
    transform = str(node.attr("coordinate_transformation_mode", _default_transform(node)))
    changed = [a for a in range(rank) if sizes[a] != shape[a]]
    corners = transform == "align_corners"
    smooth = bool(node.attr("antialias", 0))
    names = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    exact = all(abs(sizes[a] / shape[a] - scales[a]) < 1e-6 * scales[a] for a in changed)
    allowed = ("align_corners", "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    reasons = [
        ((mode, rank) not in names, f"mode {mode!r} on {rank} axes"),
        (min(changed) < 2, "it resizes the batch or the channels"),
        (transform not in allowed, f"coordinate_transformation_mode {transform!r}"),
        (transform == "pytorch_half_pixel" and any(sizes[a] == 1 for a in changed), "an output of one pixel"),
        (not exact, f"scales {scales} that do not give whole sizes"),
        (mode == "cubic" and float(node.attr("cubic_coeff_a", -0.75)) != -0.75, "another cubic coefficient than -0.75"),
        (mode == "cubic" and (smooth or bool(node.attr("exclude_outside", 0))), "antialiased or cut-off cubic"),
        (smooth and (mode != "linear" or rank != 4 or corners), "antialiasing in this mode"),
    ]
    for failed, reason in reasons:
        if failed:
            raise node.refuse(f"{reason} has no exact counterpart")
    goal, kind = sizes[2:], names[(mode, rank)]
    return lambda x, *_: functional.interpolate(x, size=goal, mode=kind, align_corners=corners, antialias=smooth)


def _default_transform(node: OnnxNode) -> str:
    """Coordinate mapping where the attribute is absent: `asymmetric` before opset 11."""
    return "half_pixel" if node.op_type == "Resize" and node.opset >= 11 else "asymmetric"


def _resize_goal(node: OnnxNode) -> tuple[list[int], list[float]]:
    """Output size and scale of every axis."""
    shape, rank = node.shape(), node.rank()
    axes = [node.axis(int(a)) for a in node.attr("axes", range(rank))]
    late = node.op_type == "Resize" and node.opset >= 11
    scale_at = 2 if late else 1
    if node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("keep_aspect_ratio_policy is not supported")
    sizes, scales = list(shape), [1.0] * rank
    given = node.constant(scale_at) if node.has(scale_at) else torch.tensor(node.attr("scales", []))
    if given.numel():
        for axis, scale in zip(axes, given.reshape(-1).tolist(), strict=True):
            scales[axis], sizes[axis] = float(scale), math.floor(shape[axis] * float(scale) + 1e-9)
        return sizes, scales
    if not late or not node.has(3):
        raise node.refuse("it has neither scales nor sizes")
    for axis, size in zip(axes, node.ints(3) or [], strict=True):
        sizes[axis], scales[axis] = size, size / shape[axis]
    return sizes, scales


def _resize_nearest(node: OnnxNode, sizes: list[int], scales: list[float]) -> Function:
    """Nearest neighbour by PyTorch's kernel where it picks the same pixels, else by index."""
    shape, rank = node.shape(), node.rank()
    rows = {a: _nearest_indices(node, shape[a], sizes[a], scales[a]) for a in range(rank) if sizes[a] != shape[a]}
    plain = rank in (3, 4, 5) and min(rows) >= 2
    if plain and all(index == [i * shape[a] // sizes[a] for i in range(sizes[a])] for a, index in rows.items()):
        goal = sizes[2:]
        return lambda x, *_: functional.interpolate(x, size=goal, mode="nearest")

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        for axis, index in rows.items():
            x = x.index_select(axis, torch.tensor(index))
        return x

    return run


def _nearest_indices(node: OnnxNode, size: int, goal: int, scale: float) -> list[int]:
    """For every output position the input position that ONNX picks."""
    transform = str(node.attr("coordinate_transformation_mode", _default_transform(node)))
    rounding = str(node.attr("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor"))
    rounding = "floor" if node.op_type == "Upsample" else rounding
    source: dict[str, Callable[[int], float]] = {
        "half_pixel": lambda i: (i + 0.5) / scale - 0.5,
        "half_pixel_symmetric": lambda i: size / 2 * (1 - goal / (scale * size)) + (i + 0.5) / scale - 0.5,
        "pytorch_half_pixel": lambda i: (i + 0.5) / scale - 0.5 if goal > 1 else 0.0,
        "align_corners": lambda i: i * (size - 1) / (goal - 1) if goal > 1 else 0.0,
        "asymmetric": lambda i: i / scale,
        "tf_half_pixel_for_nn": lambda i: (i + 0.5) / scale,
    }
    chosen: dict[str, Callable[[float], int]] = {
        "floor": math.floor,
        "ceil": math.ceil,
        "round_prefer_floor": lambda v: math.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: math.floor(v + 0.5),
    }
    if transform not in source or rounding not in chosen:
        raise node.refuse(f"coordinate_transformation_mode {transform!r} with nearest_mode {rounding!r}")
    return [min(max(chosen[rounding](source[transform](i)), 0), size - 1) for i in range(goal)]
