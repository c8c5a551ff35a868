"""Which channels of which linear make up the queries, keys and values of an attention, and which read its result.

Models write the way from a linear to the heads in many forms: one linear of width 3C and a reshape, permute and select;
slices; three linears and transposes; heads before or after the batch. All of them only move numbers about. So the
index of each channel is sent through the very same operations, and where it comes out is read off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeq.errors import InternalError
from edgeq.graph.recognize import AttentionSite
from edgeq.graph.rewrite import aten, constant_of, is_getitem, shape_of

MOVES = frozenset(
    {
        aten.reshape.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.movedim.int,
        aten.select.int,
        aten.slice.Tensor,
        aten.narrow.default,
        aten.unbind.int,
        aten.split.Tensor,
        aten.split.sizes,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.expand.default,
        aten.repeat_interleave.self_int,
        aten.roll.default,
        aten.flip.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.detach.default,
    }
)
"""Operations that only move numbers about: every output value is one of the input values."""

_POINTWISE_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)
_Value = Tensor | tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, eq=False)
class Projection:
    """The linear behind the queries, keys or values of an attention, or the one that reads the heads.

    Args:
        node: Name of the `linear` (or convolution of kernel size 1).
        channels: int64 `(heads, head_dim)`. For query, key and value: the output channel of the linear (row of its
            weight, entry of its bias) that becomes channel d of head h. For the output: the input channel (column of
            the weight) at which it arrives. A channel stands under several heads where heads share keys.
        factor: Number that the channels are multiplied by on the way.
        shared: What else reads some of these channels, as names of nodes; empty when only the attention does.
    """

    node: str
    channels: Tensor
    factor: float = 1.0
    shared: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Projections:
    """The four linears of an attention; None for those that cannot be told, with the reason.

    Args:
        query: Behind the left operand of the scores.
        key: Behind the right operand of the scores.
        value: Behind the right operand of the context.
        output: The linear that reads the context.
        reasons: Why an entry is None, by its name.
    """

    query: Projection | None
    key: Projection | None
    value: Projection | None
    output: Projection | None
    reasons: Mapping[str, str]


class _Untraceable(Exception):
    """Why a projection cannot be told."""


def attention_projections(gm: fx.GraphModule, site: AttentionSite) -> Projections:
    """The linears before and after an attention, and which of their channels belong to which head.

    Args:
        gm: Canonical graph with valid shapes.
        site: One of its attentions.

    Returns:
        Entries are None where something other than moving and scaling by a number lies between (a norm of the
        queries, a rotary embedding, a constant added), or where a head's channels differ from token to token.

    Raises:
        InternalError: The site is not of this graph.
    """
    nodes = {n.name: n for n in gm.graph.nodes}
    if missing := [n for n in (site.scores, site.softmax, site.context) if n not in nodes]:
        message = f"attention {site.index} names nodes that the graph lacks: {', '.join(missing)}"
        raise InternalError(message, code="EQ-Z260", place=missing[0])
    scores, context = nodes[site.scores], nodes[site.context]
    ways: dict[str, Callable[[], Projection]] = {
        "query": lambda: _source(gm, scores, 0, -1, site),
        "key": lambda: _source(gm, scores, 1, -2, site),
        "value": lambda: _source(gm, context, 1, -1, site),
        "output": lambda: _output(gm, context, site),
    }
    found = {name: _attempt(find) for name, find in ways.items()}
    reasons = {name: result for name, result in found.items() if isinstance(result, str)}
    query, key, value, output = (None if isinstance(result, str) else result for result in found.values())
    return Projections(query, key, value, output, reasons)


def _attempt(find: Callable[[], Projection]) -> Projection | str:
    """What `find` finds, or why it cannot."""
    try:
        return find()
    except _Untraceable as error:
        return str(error)


def channel_axis(gm: fx.GraphModule, node: fx.Node) -> int | None:
    """Axis of the channels, in input and output alike, of a linear or a plain convolution of kernel size 1.

    None for every other operation, including those whose weight is no constant.
    """
    weight = constant_of(gm, node.args[1]) if node.op == "call_function" and len(node.args) > 1 else None
    if weight is None:
        return None
    if node.target is aten.linear.default:
        return len(shape_of(node)) - 1
    if node.target not in _POINTWISE_CONVOLUTIONS:
        return None
    spatial = weight.dim() - 2
    options = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:], strict=False)) | dict(node.kwargs)
    padding, groups = options.get("padding", 0), options.get("groups", 1)
    unpadded = not any(padding) if isinstance(padding, (list, tuple)) else not padding
    plain = set(weight.shape[2:]) == {1} and unpadded and groups == 1
    return len(shape_of(node)) - 1 - spatial if plain else None


def is_move(node: object) -> bool:
    """Whether `node` only moves the values of its first argument about."""
    if not isinstance(node, fx.Node):
        return False
    return (node.target in MOVES and len(node.all_input_nodes) == 1) or is_getitem(node)


def moved(node: fx.Node, value: _Value) -> _Value:
    """What `node`, for which `is_move` holds, makes of `value` in place of its operand."""
    result: _Value = node.target(value, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return result


def number_factor(gm: fx.GraphModule, node: object) -> tuple[fx.Node, float] | None:
    """`node` as `(operand, factor)` when it multiplies or divides a tensor by one number, else None."""
    if not isinstance(node, fx.Node) or node.target not in (aten.mul.Tensor, aten.mul.Scalar, *_QUOTIENTS):
        return None
    pairs = [node.args[:2]] if node.target in _QUOTIENTS else [node.args[:2], node.args[1::-1]]
    for operand, other in pairs:
        constant = constant_of(gm, other)
        if isinstance(other, (int, float)):
            value = float(other)
        elif constant is not None and constant.numel() == 1 and constant.dim() <= len(shape_of(node)):
            value = float(constant.reshape(()))
        else:
            continue
        if isinstance(operand, fx.Node) and operand.op != "get_attr" and value:
            return operand, 1 / value if node.target in _QUOTIENTS else value
    return None


_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)


@dataclass(frozen=True, eq=False)
class Reader:
    """An operation at the end of moves and scalings, and what it sees.

    Args:
        node: The operation.
        position: Index of the argument through which it sees them; -1 for a list or a keyword.
        seen: The index tensor as it arrives there.
        factor: Number that the values are multiplied by on the way.
    """

    node: fx.Node
    position: int
    seen: Tensor
    factor: float


def readers(gm: fx.GraphModule, node: fx.Node, index: Tensor) -> Iterator[Reader]:
    """Everything that reads `node`, looking through moves and scalings, with what arrives of `index` there.

    Args:
        gm: The graph.
        node: A tensor.
        index: Tensor of the shape of `node`, in whose place it travels.
    """
    waiting: list[tuple[fx.Node, _Value, float]] = [(node, index, 1.0)]
    while waiting:
        at, value, factor = waiting.pop()
        for user in at.users:
            scaled = number_factor(gm, user)
            if is_move(user):
                waiting.append((user, moved(user, value), factor))
            elif scaled is not None and scaled[0] is at:
                waiting.append((user, value, factor * scaled[1]))
            elif isinstance(value, Tensor):
                positions = [i for i, argument in enumerate(user.args) if argument is at] or [-1]
                yield from (Reader(user, position, value, factor) for position in positions)


def channel_index(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """int64 tensor of the shape of `node`, a linear, holding the index of the output channel everywhere."""
    axis = channel_axis(gm, node)
    assert axis is not None
    shape = shape_of(node)
    ruler = torch.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return ruler.expand(shape)


def _source(gm: fx.GraphModule, reader: fx.Node, position: int, axis: int, site: AttentionSite) -> Projection:
    """The linear behind argument `position` of `reader`, whose head channels lie on `axis`."""
    node, factor = reader.args[position], 1.0
    chain: list[fx.Node] = []
    while isinstance(node, fx.Node) and channel_axis(gm, node) is None:
        scaled = number_factor(gm, node)
        if scaled is not None:
            factor *= scaled[1]
            node = scaled[0]
        elif is_move(node):
            chain.append(node)
            node = node.args[0]
        else:
            raise _Untraceable(f"{node.name} lies between the attention and its linear")
    if not isinstance(node, fx.Node):
        raise _Untraceable("an operand of the attention is no tensor of the graph")
    index = channel_index(gm, node)
    value: _Value = index
    for step in reversed(chain):
        value = moved(step, value)
    assert isinstance(value, Tensor)
    channels = _per_head(value, axis, site)
    mine = torch.zeros(int(index.max()) + 1, dtype=torch.bool)
    mine[channels] = True
    others = [r for r in readers(gm, node, index) if r.node is not reader or r.position != position]
    shared = {r.node.name: None for r in others if bool(mine[r.seen].any())}
    return Projection(node.name, channels, factor, tuple(shared))


def _per_head(seen: Tensor, axis: int, site: AttentionSite) -> Tensor:
    """`(heads, head_dim)` of an index tensor `(..., heads, tokens, head_dim)`, or with the last two swapped."""
    seen = seen.transpose(-1, -2) if axis == -2 else seen
    seen = seen.reshape(-1, *([1] * max(0, 3 - seen.dim())), *seen.shape[-3:])
    channels = seen[0, :, 0, :]
    if not bool((seen == channels[:, None, :]).all()):
        raise _Untraceable("the channels of a head differ from token to token")
    heads, width = channels.shape
    if heads not in (1, site.heads):
        raise _Untraceable(f"{heads} heads instead of {site.heads}")
    return channels.expand(site.heads, width).clone()


def _output(gm: fx.GraphModule, context: fx.Node, site: AttentionSite) -> Projection:
    """The linear that reads the context, through moves and scalings only."""
    shape = shape_of(context)
    width = shape[-1]
    heads = shape[-3] if len(shape) > 2 else 1
    if heads != site.heads:
        raise _Untraceable(f"{heads} heads instead of {site.heads}")
    ruler = torch.arange(heads * width).reshape(heads, 1, width).expand(shape)
    found = list(readers(gm, context, ruler))
    if len(found) != 1:
        names = ", ".join(r.node.name for r in found) or "nothing"
        raise _Untraceable(f"the context is read by {names}, not by one linear")
    reader = found[0]
    axis = channel_axis(gm, reader.node)
    if axis is None or reader.position != 0:
        raise _Untraceable(f"{reader.node.name} lies between the attention and its output linear")
    flat = reader.seen.movedim(axis, -1).reshape(-1, reader.seen.shape[axis])
    if not bool((flat == flat[0]).all()) or flat.shape[1] != heads * width:
        raise _Untraceable("the heads do not stand side by side before the output linear")
    columns = torch.full((heads * width,), -1)
    columns[flat[0]] = torch.arange(heads * width)
    if not torch.equal(columns.sort().values, torch.arange(heads * width)):
        raise _Untraceable("the output linear reads a channel of the heads twice")
    return Projection(reader.node.name, columns.reshape(heads, width), reader.factor)
