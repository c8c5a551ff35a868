"""Clean-ups that turn what `torch.export` gives into the canonical graph.

Every pass takes a graph module with valid `meta["val"]`, changes it in place, and leaves the values that the graph
computes as they are, up to float rounding. `PASSES` is the order in which `capture` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from edgeq.graph.affine import fold_affine, fold_batch_norm, matmul_to_linear
from edgeq.graph.kinds import op_kind
from edgeq.graph.rewrite import (
    add_constant,
    aten,
    call,
    calls,
    constant_of,
    is_getitem,
    number,
    path_of,
    refresh,
    shape_of,
    supersede,
)

_COPIES = (
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
)
_SAME_IF_UNCHANGED = (
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten._to_copy.default,
    aten.expand.default,
    aten.reshape.default,
    aten.slice.Tensor,
    aten.type_as.default,
    aten.constant_pad_nd.default,
)
_ASSERTS = (aten._assert_tensor_metadata.default, aten._assert_async.msg, aten.sym_constrain_range.default)
# A folded constant may outgrow what it was made of only up to this many values (16 MB of float32).
_MAX_GROWN_CONSTANT = 1 << 22


def drop_asserts(gm: fx.GraphModule) -> None:
    """Erase run-time assertions: the shapes are fixed, so they hold or export has failed."""
    for node in calls(gm, *_ASSERTS):
        if not node.users:
            gm.graph.erase_node(node)


def open_products(gm: fx.GraphModule) -> None:
    """Write `einsum` and its kin as the products they are, which quantizers know, the way PyTorch computes them."""
    for node in calls(gm, aten.einsum.default, aten.bilinear.default, aten.tensordot.default):
        operands = node.all_input_nodes
        inputs = [torch.empty(shape_of(n), dtype=n.meta["val"].dtype) for n in operands]

        def compute(*tensors: torch.Tensor, node: fx.Node = node, operands: list[fx.Node] = operands) -> object:
            values = dict(zip(operands, tensors, strict=True))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            return cast("Callable[..., Any]", node.target)(*args, **kwargs)

        inner = make_fx(compute, tracing_mode="fake")(*inputs).graph
        copies = dict(zip((n for n in inner.nodes if n.op == "placeholder"), operands, strict=True))
        with gm.graph.inserting_before(node):
            result = gm.graph.graph_copy(inner, copies)
        for copy in set(copies.values()) - set(operands):
            copy.meta["path"] = node.meta.get("path", "")
        assert isinstance(result, fx.Node)
        supersede(node, result)


def views_to_reshape(gm: fx.GraphModule) -> None:
    """One operation for every change of shape; unlike `view` it does not care about strides, so copies can go."""
    for node in calls(gm, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int):
        new = call(gm, aten.reshape.default, node.args[0], list(shape_of(node)), before=node)
        new.meta["val"] = node.meta["val"]
        supersede(node, new)


def drop_no_ops(gm: fx.GraphModule) -> None:
    """Remove copies, casts to the same type, and reshapes, expands, slices and permutes that change nothing."""
    for node in calls(gm, *_COPIES, *_SAME_IF_UNCHANGED, aten.permute.default, aten.cat.default):
        source = node.args[0]
        if node.target is aten.cat.default and isinstance(source, (list, tuple)) and len(source) == 1:
            source = source[0]
        if isinstance(source, fx.Node) and (node.target in _COPIES or _unchanged(node, source)):
            supersede(node, source)


def _unchanged(node: fx.Node, source: fx.Node) -> bool:
    """Whether `node`, of a kind that keeps order, yields exactly the tensor it reads."""
    before, after = source.meta["val"], node.meta["val"]
    if before.dtype != after.dtype or before.shape != after.shape:
        return False
    if node.target is aten.permute.default:
        axes = [number(a) % before.dim() for a in cast("list[int]", node.args[1])]
        return axes == sorted(axes)
    if node.target is aten.constant_pad_nd.default:
        return not any(cast("list[int]", node.args[1]))
    if node.target is aten.slice.Tensor:
        return len(node.args) < 5 or bool(node.args[4] == 1)
    return True


def merge_reshapes(gm: fx.GraphModule) -> None:
    """A reshape of a reshape is one reshape."""
    for node in calls(gm, aten.reshape.default):
        source = node.args[0]
        if isinstance(source, fx.Node) and source.target is aten.reshape.default:
            node.update_arg(0, source.args[0])


def normalize_overloads(gm: fx.GraphModule) -> None:
    """One spelling for operations that have several: pooling without indices, constant padding, integer padding."""
    pools: dict[object, Callable[..., Any]] = {
        aten.max_pool1d_with_indices.default: aten.max_pool1d.default,
        aten.max_pool2d_with_indices.default: aten.max_pool2d.default,
        aten.max_pool3d_with_indices.default: aten.max_pool3d.default,
    }
    for node in calls(gm, *pools):
        if all(is_getitem(u) and u.args[1] == 0 for u in node.users):
            new = call(gm, pools[node.target], *node.args, before=node)
            new.kwargs = dict(node.kwargs)
            for user in list(node.users):
                new.meta["val"] = user.meta["val"]
                supersede(user, new)
    for node in calls(gm, aten.pad.default):
        mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
        value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
        if mode == "constant":
            new = call(gm, aten.constant_pad_nd.default, node.args[0], node.args[1], value or 0.0, before=node)
            new.meta["val"] = node.meta["val"]
            supersede(node, new)
    for node in calls(gm, aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default):
        if tuple(node.meta["val"].shape[-2:]) == (1, 1):
            new = call(gm, aten.mean.dim, node.args[0], [-2, -1], True, before=node)
            new.meta["val"] = node.meta["val"]
            supersede(node, new)
    for node in calls(gm, aten.conv1d.padding, aten.conv2d.padding):
        _explicit_padding(gm, node)


def _explicit_padding(gm: fx.GraphModule, node: fx.Node) -> None:
    """Replace `padding="same"|"valid"` by numbers; what is uneven goes to the end, as PyTorch defines it."""
    spatial = 1 if node.target is aten.conv1d.padding else 2
    x, weight, bias, stride, padding, dilation, groups = _filled(node)
    kernel = shape_of(weight)[-spatial:]
    total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation * spatial, strict=False)]
    if any(t % 2 for t in total):
        pads = [p for t in reversed(total) for p in (0, t % 2)]
        grown = call(gm, aten.constant_pad_nd.default, x, pads, 0.0, before=node)
        grown.meta["val"] = torch.nn.functional.pad(x.meta["val"], pads)
        x = grown
    target = aten.conv1d.default if spatial == 1 else aten.conv2d.default
    new = call(gm, target, x, weight, bias, stride, [t // 2 for t in total], dilation, groups, before=node)
    new.meta["val"] = node.meta["val"]
    supersede(node, new)


def _filled(node: fx.Node) -> tuple[fx.Node, fx.Node, object, list[int], str, list[int], int]:
    """All arguments of a convolution with named padding."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    values: dict[str, object] = {"bias": None, "stride": [1], "padding": "valid", "dilation": [1], "groups": 1}
    values.update(zip(names, node.args, strict=False))
    values.update(node.kwargs)
    return tuple(values[n] for n in names)  # type: ignore[return-value]


def picks_to_slices(gm: fx.GraphModule) -> None:
    """Replace `split`, `chunk` and `unbind` by slices and selects, so that every value has one tensor."""
    splits = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.split.sizes)
    for node in calls(gm, *splits):
        source, users = node.args[0], list(node.users)
        if not isinstance(source, fx.Node) or not all(is_getitem(u) for u in users):
            continue
        values = node.meta["val"]
        unbind = node.target is aten.unbind.int
        position = 1 if unbind else 2
        axis = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
        axis = number(axis) % len(shape_of(source))
        for user in users:
            index = number(user.args[1]) % len(values)
            if unbind:
                new = call(gm, aten.select.int, source, axis, index, before=user)
            else:
                start = sum(int(v.shape[axis]) for v in values[:index])
                end = start + int(values[index].shape[axis])
                new = call(gm, aten.slice.Tensor, source, axis, start, end, before=user)
            new.meta["val"] = user.meta["val"]
            supersede(user, new)


def open_attention(gm: fx.GraphModule) -> None:
    """Write `scaled_dot_product_attention` as scale, transpose, matmul, mask, softmax, matmul.

    The scale is applied to the query, `(B, H, Q, D)`, where it costs least; PyTorch's reference applies its root to
    query and key each, which is the same up to rounding.
    """
    for node in calls(gm, aten.scaled_dot_product_attention.default):
        query, key, value = (_node(a) for a in node.args[:3])
        options = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False)) | dict(node.kwargs)
        tokens, keys, width = shape_of(query)[-2], shape_of(key)[-2], shape_of(query)[-1]
        if options.get("enable_gqa") and shape_of(query)[-3] != shape_of(key)[-3]:
            repeat = shape_of(query)[-3] // shape_of(key)[-3]
            key = call(gm, aten.repeat_interleave.self_int, key, repeat, -3, before=node)
            value = call(gm, aten.repeat_interleave.self_int, value, repeat, -3, before=node)
        scale = options.get("scale")
        scale = 1.0 / math.sqrt(width) if scale is None else float(scale)  # type: ignore[arg-type]
        scaled = call(gm, aten.mul.Tensor, query, scale, before=node)
        turned = call(gm, aten.transpose.int, key, -2, -1, before=node)
        scores = call(gm, aten.matmul.default, scaled, turned, before=node)
        mask = options.get("attn_mask")
        if options.get("is_causal"):
            hidden = torch.ones(tokens, keys, dtype=torch.bool).triu(1)
            causal = torch.zeros(tokens, keys).masked_fill(hidden, -math.inf)
            mask = add_constant(gm, "causal_mask", causal, node)
        if isinstance(mask, fx.Node):
            scores = call(gm, aten.add.Tensor, scores, _additive(gm, mask, node), before=node)
        weights = call(gm, aten.softmax.int, scores, -1, before=node)
        supersede(node, call(gm, aten.matmul.default, weights, value, before=node))


def _additive(gm: fx.GraphModule, mask: fx.Node, before: fx.Node) -> fx.Node:
    """`mask` as something to add: a boolean mask keeps where it is True."""
    if mask.meta["val"].dtype != torch.bool:
        return mask
    zero = add_constant(gm, "mask_keep", torch.zeros(()), before)
    hide = add_constant(gm, "mask_hide", torch.tensor(-math.inf), before)
    return call(gm, aten.where.self, mask, zero, hide, before=before)


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def fold_constants(gm: fx.GraphModule) -> None:
    """Evaluate operations that read only constants, unless the result is much larger than what it is made of."""
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or isinstance(node.meta.get("val"), (list, tuple)):
            continue
        operands = [constant_of(gm, n) for n in node.all_input_nodes]
        if any(o is None for o in operands) or "rand" in str(node.target):
            continue
        size = math.prod(shape_of(node))
        if size > max([_MAX_GROWN_CONSTANT, *(o.numel() for o in operands if o is not None)]):
            continue
        with torch.no_grad():
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: constant_of(gm, n))
            value = node.target(*args, **kwargs)
        sources = [path_of(n) for n in node.all_input_nodes]
        name = sources[0] if sources else ".".join(p for p in (node.meta.get("path"), op_kind(node)) if p)
        supersede(node, add_constant(gm, name, value.clone(), node))


def drop_dead(gm: fx.GraphModule) -> None:
    """Erase everything that no output depends on, keeping the inputs."""
    gm.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))


Pass = Callable[[fx.GraphModule], None]

PASSES: tuple[Pass, ...] = (
    drop_asserts,
    open_products,
    refresh,
    views_to_reshape,
    normalize_overloads,
    open_attention,
    refresh,
    picks_to_slices,
    drop_no_ops,
    fold_constants,
    fold_batch_norm,
    matmul_to_linear,
    fold_affine,
    merge_reshapes,
    drop_no_ops,
    fold_constants,
    drop_dead,
)
