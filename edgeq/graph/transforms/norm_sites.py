"""Normalizations that only linears read: the places where a scale and a shift per channel can be moved for free.

A layer norm ends in `gamma * n + beta`, a linear starts with a product by W. A scale or shift that is taken from the
one and given to the other changes no result, only how the tensor between them fits a grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from edgeq.errors import InternalError, UsageError
from edgeq.graph.rewrite import aten, calls, constant_of, path_of, shape_of, single_user
from edgeq.graph.transforms.channels import ChannelStatistics
from edgeq.graph.transforms.parameters import argument, parameter, set_parameter, store_constant
from edgeq.graph.transforms.projections import channel_axis, readers
from edgeq.graph.transforms.report import Skipped

_NORMS = (aten.layer_norm.default, aten.rms_norm.default)


@dataclass(frozen=True, eq=False)
class NormReader:
    """A linear that reads a normalization.

    Args:
        node: Name of the `linear` (or convolution of kernel size 1).
        columns: int64 `(inputs,)`: the channel of the normalization that arrives at each input.
        factor: Number that the channels are multiplied by on the way.
        weight: Attribute path of its weight.
        bias: Attribute path of its bias; empty when it has none.
    """

    node: str
    columns: Tensor
    factor: float
    weight: str
    bias: str


@dataclass(frozen=True, eq=False)
class NormSite:
    """A normalization over the last axis all of whose readers are linears. Nodes by name, so that it fits copies.

    Args:
        norm: The normalizing operation.
        output: The tensor that the linears read: `norm`, or the product or sum after it.
        width: Channels C.
        gain: Operation that holds gamma; empty when there is none.
        offset: Operation that holds beta; empty when there is none.
        gamma: Attribute path of gamma `(C,)`; empty when there is none.
        beta: Attribute path of beta `(C,)`; empty when there is none.
        readers: The linears.
    """

    norm: str
    output: str
    width: int
    gain: str
    offset: str
    gamma: str
    beta: str
    readers: tuple[NormReader, ...]


def norm_sites(gm: fx.GraphModule) -> tuple[tuple[NormSite, ...], tuple[Skipped, ...]]:
    """All normalizations of a graph that only linears read, and those that something else reads too.

    Found are `layer_norm` and `rms_norm` over the last axis, and root mean square norms written out as
    `x * rsqrt(mean(x^2) + eps)` with an optional product and sum with a constant per channel. Between norm and linear
    may lie operations that move values about, and products with a number.

    Args:
        gm: Canonical graph with valid shapes.
    """
    sites: list[NormSite] = []
    skipped: list[Skipped] = []
    for node in [*calls(gm, *_NORMS, aten.mul.Tensor)]:
        if node.target is aten.mul.Tensor and not _is_root_mean_square(gm, node):
            continue
        found = _site(gm, node)
        if isinstance(found, str):
            skipped.append(Skipped(node.name, found))
        else:
            sites.append(found)
    return tuple(sites), tuple(skipped)


def affine(gm: fx.GraphModule, site: NormSite) -> tuple[Tensor, Tensor]:
    """Gamma and beta of a normalization as float64 `(C,)`; ones and zeros where it has none."""
    nodes = {n.name: n for n in gm.graph.nodes}
    _require(site, nodes)
    gamma, beta = torch.ones(site.width, dtype=torch.float64), torch.zeros(site.width, dtype=torch.float64)
    if site.gain:
        gamma = _held(gm, nodes[site.gain], "weight").double().reshape(-1)
    if site.offset:
        beta = _held(gm, nodes[site.offset], "bias").double().reshape(-1)
    return gamma, beta


def shift_and_scale(gm: fx.GraphModule, site: NormSite, shift: Tensor, scale: Tensor) -> NormSite:
    """Make the linears read `(x + shift) / scale` in place of x, and adapt them, so that no result changes.

    `gamma' = gamma / scale`, `beta' = (beta + shift) / scale`, `W' = W * scale`, `c' = c - W shift`, computed in
    float64. A missing gamma, beta or bias is created where it is needed. This is the common step of SmoothQuant
    (Xiao et al., arXiv:2211.10438, equation 3), of its form with a shift, and of RepQ-ViT (Li et al.,
    arXiv:2212.08254, equations 5 to 10).

    Args:
        gm: Canonical graph, changed in place.
        site: One of its `norm_sites`.
        shift: `(C,)`.
        scale: `(C,)`, positive.

    Returns:
        The site as it is now.

    Raises:
        UsageError: Shift or scale do not have one finite value a channel, or a scale is not positive.
        InternalError: The site is not of this graph.
    """
    shift, scale = shift.to(torch.float64), scale.to(torch.float64)
    require_channels(site.width, shift=shift, scale=scale)
    if not bool((scale > 0).all()):
        message = f"the scales of {site.norm} are not all positive: smallest {float(scale.min())}"
        raise UsageError(message, code="EQ-U260", hint="widen ranges of zero first")
    gamma, beta = affine(gm, site)
    site = _set_affine(gm, site, gamma / scale, (beta + shift) / scale)
    nodes = {n.name: n for n in gm.graph.nodes}
    done = []
    for reader in site.readers:
        columns = reader.columns
        weight, bias = adapt_columns(gm, nodes[reader.node], scale[columns], reader.factor * shift[columns])
        done.append(replace(reader, weight=weight, bias=bias))
    return replace(site, readers=tuple(done))


def adapt_columns(gm: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> tuple[str, str]:
    """Make a linear that gets `(x + shift) / scale` in place of x compute what it did.

    Args:
        gm: Canonical graph, changed in place.
        node: A linear, or a convolution of kernel size 1.
        scale: float64 `(inputs,)`.
        shift: float64 `(inputs,)`.

    Returns:
        Attribute paths of weight and bias (empty when there is none).
    """
    weight, bias = parameter(gm, node, "weight"), parameter(gm, node, "bias")
    assert weight is not None
    wide = weight.double()
    trailing = [1] * (weight.dim() - 2)
    path = set_parameter(gm, node, "weight", wide * scale.reshape(1, -1, *trailing))
    if bool(shift.any()):
        start = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.double()
        return path, set_parameter(gm, node, "bias", start - wide.flatten(1) @ shift)
    return path, path_of(argument(node, "bias"))


def require_channels(width: int, **vectors: Tensor) -> None:
    """Raise UsageError unless each of `vectors` holds one finite value for each of `width` channels."""
    for name, vector in vectors.items():
        if tuple(vector.shape) != (width,) or not bool(torch.isfinite(vector).all()):
            message = f"{name} needs one finite value for each of {width} channels; its shape is {tuple(vector.shape)}"
            raise UsageError(message, code="EQ-U260", hint="take it from channel_statistics() of the same graph")


def statistics_of(statistics: Mapping[str, ChannelStatistics], name: str, width: int) -> ChannelStatistics | None:
    """The statistics of tensor `name`, or None; raises UsageError when they are of other channels."""
    found = statistics.get(name)
    if found is not None:
        require_channels(width, **{f"the statistics of {name}": found.low})
    return found


def _site(gm: fx.GraphModule, node: fx.Node) -> NormSite | str:
    """The site of a normalizing node, or why it is none."""
    shape = shape_of(node)
    if node.target in _NORMS:
        normalized = node.args[1]
        if not isinstance(normalized, (list, tuple)) or len(normalized) != 1:
            return "it normalizes over more than the last axis"
        own = parameter(gm, node, "weight") is not None
        if argument(node, "weight") is not None and not own:
            return "its gain is computed"
        own_bias = node.target is aten.layer_norm.default and argument(node, "bias") is not None
        if own_bias and parameter(gm, node, "bias") is None:
            return "its shift is computed"
        gain, offset = node if own else None, node if own_bias else None
    else:
        gain = offset = None
    output = node
    if gain is None and node.target is not aten.layer_norm.default and (tail := _tail(gm, output, aten.mul.Tensor)):
        output = gain = tail
    if node.target is not aten.layer_norm.default and (tail := _tail(gm, output, aten.add.Tensor)):
        output = offset = tail
    found = _readers(gm, output)
    if isinstance(found, str):
        return found
    return NormSite(
        norm=node.name,
        output=output.name,
        width=shape[-1],
        gain=gain.name if gain else "",
        offset=offset.name if offset else "",
        gamma=_path(gain, "weight"),
        beta=_path(offset, "bias"),
        readers=found,
    )


def _readers(gm: fx.GraphModule, output: fx.Node) -> tuple[NormReader, ...] | str:
    """The linears that read `output`, or what else does."""
    shape = shape_of(output)
    result = []
    for reader in readers(gm, output, torch.arange(shape[-1]).expand(shape)):
        axis = channel_axis(gm, reader.node)
        if axis is None or reader.position != 0:
            return f"{reader.node.name} reads it, which is no linear"
        rows = reader.seen.movedim(axis, -1).reshape(-1, reader.seen.shape[axis])
        if not bool((rows == rows[0]).all()):
            return f"{reader.node.name} reads other channels at other positions"
        bias = path_of(argument(reader.node, "bias"))
        if argument(reader.node, "bias") is not None and not bias:
            return f"the bias of {reader.node.name} is computed"
        weight = path_of(argument(reader.node, "weight"))
        result.append(NormReader(reader.node.name, rows[0].clone(), reader.factor, weight, bias))
    return tuple(result) or "nothing reads it"


def _set_affine(gm: fx.GraphModule, site: NormSite, gamma: Tensor, beta: Tensor) -> NormSite:
    """Write gamma and beta, creating what is missing unless it would be ones or zeros."""
    nodes = {n.name: n for n in gm.graph.nodes}
    norm = nodes[site.norm]
    own = {"gain": _NORMS, "offset": (aten.layer_norm.default,)}
    for role, name, value, neutral in (("gain", "weight", gamma, 1.0), ("offset", "bias", beta, 0.0)):
        holder = nodes.get(getattr(site, role))
        if holder is None and bool((value == neutral).all()):
            continue
        if holder is None and norm.target in own[role]:
            holder = norm
        if holder is None:
            last = role == "offset" or not site.offset  # the product comes before the sum
            holder = _append(gm, nodes[site.output] if last else norm, role, value)
            site = replace(site, output=holder.name if last else site.output)
            nodes[holder.name] = holder
        elif holder.target in _NORMS:
            set_parameter(gm, holder, name, value)
        else:
            slot = "self" if constant_of(gm, holder.args[0]) is not None else "other"
            set_parameter(gm, holder, slot, value.reshape(_held(gm, holder, name).shape))
        if role == "gain":
            site = replace(site, gain=holder.name, gamma=_path(holder, name))
        else:
            site = replace(site, offset=holder.name, beta=_path(holder, name))
    return site


def _append(gm: fx.GraphModule, node: fx.Node, role: str, value: Tensor) -> fx.Node:
    """A product or sum with a constant behind `node`, which everything that read `node` now reads."""
    target = aten.mul.Tensor if role == "gain" else aten.add.Tensor
    after = node.next
    constant = store_constant(gm, f"{node.name}_{role}", value, before=after)
    with gm.graph.inserting_before(after):
        new = gm.graph.call_function(target, (node, constant))
    new.meta = {k: v for k, v in node.meta.items() if k in ("path", "val")}
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    gm.recompile()
    return new


def _tail(gm: fx.GraphModule, node: fx.Node, target: object) -> fx.Node | None:
    """The only reader of `node` if it is `target` with a constant per channel of the last axis."""
    if not single_user(node):
        return None
    user = next(iter(node.users))
    if user.target is not target or user.kwargs or shape_of(user) != shape_of(node):
        return None
    constant = next((c for c in (constant_of(gm, a) for a in user.args) if c is not None), None)
    width = shape_of(node)[-1]
    fits = constant is not None and constant.dim() > 0 and constant.shape[-1] == constant.numel() == width
    return user if fits else None


def _held(gm: fx.GraphModule, holder: fx.Node, name: str) -> Tensor:
    """The constant that `holder` multiplies by or adds."""
    if holder.target in _NORMS:
        value = parameter(gm, holder, name)
    else:
        value = next((c for c in (constant_of(gm, a) for a in holder.args) if c is not None), None)
    assert value is not None
    return value


def _path(holder: fx.Node | None, name: str) -> str:
    """Attribute path of the constant that `holder` holds."""
    if holder is None:
        return ""
    if holder.target in _NORMS:
        return path_of(argument(holder, name))
    return next((path_of(a) for a in holder.args if path_of(a)), "")


def _is_root_mean_square(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is `x * rsqrt(mean(x^2) + eps)` over the last axis."""
    for x, inverse in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, fx.Node) or not isinstance(inverse, fx.Node) or inverse.target is not aten.rsqrt.default:
            continue
        total = inverse.args[0]
        mean = total.args[0] if isinstance(total, fx.Node) and total.target is aten.add.Tensor else total
        if (
            isinstance(mean, fx.Node)
            and mean.target is aten.mean.dim
            and mean.args[1] in ([-1], [len(shape_of(x)) - 1])
        ):
            square = mean.args[0]
            assert isinstance(square, fx.Node)
            product = square.target is aten.mul.Tensor and square.args[0] is square.args[1] is x
            power = square.target is aten.pow.Tensor_Scalar and tuple(square.args) == (x, 2)
            if product or power or (square.target is aten.square.default and square.args[0] is x):
                return math.prod(shape_of(mean)) * shape_of(x)[-1] == math.prod(shape_of(x))
    return False


def _require(site: NormSite, nodes: Mapping[str, fx.Node]) -> None:
    """Raise InternalError unless the nodes of `site` are in the graph."""
    names = (site.norm, site.output, *(r.node for r in site.readers))
    if missing := [n for n in names if n not in nodes]:
        message = f"norm site {site.norm} names nodes that the graph lacks: {', '.join(missing)}"
        raise InternalError(message, code="EQ-Z260", place=site.norm)
