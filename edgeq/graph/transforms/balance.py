"""Channels of an MLP's hidden layer on one grid: the quiet ones enlarged half-way to the loud ones.

GELU stands between the two linears, so that no scale can pass from one to the other. But GELU runs in float on both
sides of a conversion, and a multiplication per channel beside it costs little.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from edgeq.graph.bounds import set_bounds
from edgeq.graph.rewrite import aten, call, calls, refresh
from edgeq.graph.transforms.channels import ChannelStatistics
from edgeq.graph.transforms.parameters import parameter, set_parameter, store_constant
from edgeq.graph.transforms.report import Report, Skipped
from edgeq.graph.transforms.stream import residual_streams

HEADROOM = 1.15
"""How far beyond the largest calibration value a channel's grid reaches: rare channels peak higher on other images."""

_SATURATED = -4.0  # GELU(-4) = -1.3e-4: what lies below needs no codes of its own
_GELU_LOW = 0.17
_QUIET = 0.1  # a channel is treated as if it reached at least this share of a typical activation


def hidden_tensors(gm: fx.GraphModule) -> tuple[str, ...]:
    """What `balance_hidden` takes statistics of: the linears before GELUs, channels last."""
    return tuple(first.name for first, _, _ in _layers(gm)[0])


def balance_hidden(gm: fx.GraphModule, statistics: Mapping[str, ChannelStatistics]) -> Report[str]:
    """Give each channel before and after a GELU a range of its own on one grid per tensor.

    A channel with the range [l, h] gets the range `[-sqrt(|l| L), sqrt(h H)]` times the headroom, with L and H the
    widest of the layer: half-way, in logarithms, between a grid per channel and one per tensor. Either end of the way
    is worse: a grid per tensor has no codes for quiet channels, one per channel clips what calibration did not see on
    other images. Before the GELU, scale and offset of a channel are folded into the linear and undone by a
    multiplication and an addition; after it, a multiplication is undone by the columns of the next linear. What GELU
    maps to nearly 0 gets no codes. The report names the first linear of each MLP.

    Source: ours; the half-way exponent is SmoothQuant's alpha of 0.5 (Xiao et al., arXiv:2211.10438, equation 4).

    Args:
        gm: Canonical graph, changed in place; refreshed afterwards. Bounds are noted on the balanced tensors.
        statistics: Of the tensors of `hidden_tensors`, by name; layers without are skipped.
    """
    found, skipped = _layers(gm)
    done = []
    for first, gelu, second in found:
        seen = statistics.get(first.name)
        if seen is None:
            skipped.append(Skipped(gelu.name, f"no statistics of {first.name}"))
            continue
        _balance(gm, first, gelu, second, seen)
        done.append(first.name)
    gm.graph.lint()
    gm.recompile()
    refresh(gm)
    return Report(tuple(done), tuple(skipped))


def stem_tensors(gm: fx.GraphModule) -> dict[str, int]:
    """What `balance_stems` takes statistics of: the convolutions that write into residual streams, by channel axis.

    To be asked before the streams are rotated, which hides them.
    """
    nodes = {n.name: n for n in gm.graph.nodes}
    writers = [w for stream in residual_streams(gm) if not stream.reason for w in stream.writers]
    return {w: 1 for w in writers if nodes[w].target is aten.conv2d.default}


def balance_stems(gm: fx.GraphModule, statistics: Mapping[str, ChannelStatistics]) -> Report[str]:
    """Give each output channel of a convolution a range of its own, half-way as in `balance_hidden`.

    Patch embeddings put out a few loud channels; scales are folded into the weight and undone by a multiplication.

    Args:
        gm: Canonical graph, changed in place; refreshed afterwards. Bounds are noted on the convolutions.
        statistics: Of convolutions that only float operations read, by name.
    """
    nodes = {n.name: n for n in gm.graph.nodes}
    for name, seen in statistics.items():
        node = nodes[name]
        scale = _half_way(seen.absmax)
        weight, bias = parameter(gm, node, "weight"), parameter(gm, node, "bias")
        assert weight is not None
        set_parameter(gm, node, "weight", weight.double() / scale.reshape(-1, 1, 1, 1))
        if bias is not None:
            set_parameter(gm, node, "bias", bias.double() / scale)
        set_bounds(node, -1.0, 1.0, "balanced channels")
        following, users = node.next, list(node.users)
        constant = store_constant(gm, f"{name}.scale", scale.reshape(-1, 1, 1), following)
        widened = call(gm, aten.mul.Tensor, node, constant, before=following, like=node)
        for user in users:
            user.replace_input_with(node, widened)
    gm.graph.lint()
    gm.recompile()
    refresh(gm)
    return Report(tuple(statistics), ())


def _layers(gm: fx.GraphModule) -> tuple[list[tuple[fx.Node, fx.Node, fx.Node]], list[Skipped]]:
    """Linear, GELU, linear, each read by the next alone."""
    found, skipped = [], []
    for gelu in calls(gm, aten.gelu.default):
        first, users = gelu.args[0], list(gelu.users)
        linear = isinstance(first, fx.Node) and first.target is aten.linear.default and len(first.users) == 1
        follows = len(users) == 1 and users[0].target is aten.linear.default and users[0].args[0] is gelu
        constant = linear and follows and all(parameter(gm, n, "weight") is not None for n in (first, users[0]))  # type: ignore[arg-type]
        if not constant:
            skipped.append(Skipped(gelu.name, "not between two linears that nothing else reads"))
            continue
        assert isinstance(first, fx.Node)
        found.append((first, gelu, users[0]))
    return found, skipped


def _balance(gm: fx.GraphModule, first: fx.Node, gelu: fx.Node, second: fx.Node, seen: ChannelStatistics) -> None:
    high = _half_way(seen.high)
    low = torch.clamp(_half_way(-seen.low.clamp(min=_SATURATED)), max=-_SATURATED)
    scale, offset = (high + low) / 2, (high - low) / 2
    weight, bias = parameter(gm, first, "weight"), parameter(gm, first, "bias")
    assert weight is not None
    start = torch.zeros_like(scale) if bias is None else bias.double()
    set_parameter(gm, first, "weight", weight.double() / scale[:, None])
    set_parameter(gm, first, "bias", (start - offset) / scale)
    set_bounds(first, -1.0, 1.0, "balanced channels")
    stem = first.name
    constants = [store_constant(gm, f"{stem}.{n}", v, gelu) for n, v in (("scale", scale), ("offset", offset))]
    widened = call(gm, aten.mul.Tensor, first, constants[0], before=gelu, like=first)
    gelu.replace_input_with(first, call(gm, aten.add.Tensor, widened, constants[1], before=gelu, like=first))
    reach = torch.nn.functional.gelu(high)
    inverse = store_constant(gm, f"{gelu.name}.inverse", 1 / reach, second)
    balanced = call(gm, aten.mul.Tensor, gelu, inverse, before=second, like=gelu)
    balanced.meta["val"] = gelu.meta["val"]
    set_bounds(balanced, -_GELU_LOW / float(reach.min()), 1.0, "balanced channels")
    second.replace_input_with(gelu, balanced)
    columns = parameter(gm, second, "weight")
    assert columns is not None
    set_parameter(gm, second, "weight", columns.double() * reach)


def _half_way(ends: Tensor) -> Tensor:
    """Geometric mean of each channel's end and the widest one, with headroom."""
    widest = float(ends.max())
    if widest <= 0:
        return torch.full_like(ends, _QUIET)
    return (ends.clamp(min=_QUIET * min(widest, 1.0)) * widest).sqrt() * HEADROOM
