"""What makes the tensors of convolutional networks fit grids of 8 bits: quiet channels around SiLU are enlarged."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeq.graph.bounds import set_bounds
from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import aten, call, calls, refresh, shape_of
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.parameters import argument, parameter, set_parameter, store_constant
from edgeq.graph.transforms.report import Applied, Batches, Report, Skipped

ALPHA = 0.75
"""How far channels are evened out: 0 leaves them, 1 gives each a grid of its own; by measurement on YOLOX-nano
(docs/decisions/0013): 0.5 leaves quiet channels too few codes, 1 spreads the columns of the next layer's weights."""

SATURATED = 8.0
"""Beyond it a sigmoid differs from 0 and 1 by a tenth of an 8-bit code, and `x * sigmoid(x)` by 0.003 from ReLU."""

_LEVELS = 255  # factors are multiples of 1/255, which a grid of 8 bits from 0 to 1 holds exactly
_QUIET = 0.02  # a channel is treated as if it reached at least this: dead ones must not get factors of 0
_PASSING = (aten.max_pool2d.default, aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec)


@dataclass(frozen=True)
class _Site:
    """A convolution, the sigmoid and the product that make its SiLU, and who reads that: layer and first channel."""

    layer: fx.Node
    gate: fx.Node
    result: fx.Node
    readers: tuple[tuple[fx.Node, int], ...]


class _BlockedError(Exception):
    """Why a scale cannot pass."""


def fit_convolution(graph: fx.GraphModule, batches: Batches) -> tuple[fx.GraphModule, tuple[Applied, ...]]:
    """Balance the channels around SiLU in a copy; the function stays, up to float rounding.

    A graph without `x * sigmoid(x)` between convolutions is returned as it is.

    Args:
        graph: Canonical float graph, prepared for the runtime.
        batches: Calibration inputs; read once.

    Raises:
        DataError: There is no batch, or an input holds NaN or infinity.
    """
    axes = silu_tensors(graph)
    if not axes:
        return graph, ()
    copied = copy.deepcopy(graph)
    report = balance_silu(copied, channel_statistics(copied, list(axes), batches(), axes))
    return rebuild(copied), (Applied("balance SiLU", len(report.sites), report.skipped),)


def silu_tensors(gm: fx.GraphModule) -> dict[str, int]:
    """What `balance_silu` takes statistics of: convolutions before `x * sigmoid(x)`, by axis of channels."""
    return {site.layer.name: 1 for site in _sites(gm)[0]}


def balance_silu(gm: fx.GraphModule, statistics: Mapping[str, ChannelStatistics]) -> Report[str]:
    """Divide each channel before `x * sigmoid(x)` by a factor of its own, and multiply the weights that read it by it.

    With factors s of the channels, `x' = x / s` comes out of the convolution, the sigmoid reads `x' s`, and the product
    `x' sigmoid(x' s)` is `SiLU(x) / s`, which the columns of the next layers' weights undo. One multiplication for each
    value is all it costs, and its grid needs to reach `SATURATED` only. A channel that reaches r beside one that
    reaches R gets `s = (r / R) ** ALPHA`. What lies below `-SATURATED` gets no codes: SiLU makes nearly nothing of it.
    Scales pass to convolutions, also through joined channels, maximum pools and nearest upsampling.

    Source: ours, in the spirit of cross-layer equalization (Nagel et al., arXiv:1906.04721, section 4.1), which needs
    an activation with `f(s x) = s f(x)`; the exponent is SmoothQuant's alpha (arXiv:2211.10438, equation 4).

    Args:
        gm: Canonical graph, changed in place; refreshed afterwards. Bounds are noted on the convolutions and on what
            the sigmoids read.
        statistics: Of the tensors of `silu_tensors`, by name; convolutions without are skipped.

    Returns:
        The names of the convolutions.
    """
    found, skipped = _sites(gm)
    done = []
    for site in found:
        seen = statistics.get(site.layer.name)
        if seen is None:
            skipped.append(Skipped(site.result.name, f"no statistics of {site.layer.name}"))
            continue
        _balance(gm, site, seen)
        done.append(site.layer.name)
    gm.graph.lint()
    gm.recompile()
    refresh(gm)
    return Report(tuple(done), tuple(skipped))


def _balance(gm: fx.GraphModule, site: _Site, seen: ChannelStatistics) -> None:
    high, low = seen.high.clamp(min=_QUIET), seen.low.clamp(-SATURATED, 0)
    reach = torch.maximum(high, -low)
    factors = ((reach / reach.max()) ** ALPHA * _LEVELS).round().clamp(min=1) / _LEVELS
    layer, gate = site.layer, site.gate
    weight, bias = parameter(gm, layer, "weight"), parameter(gm, layer, "bias")
    assert weight is not None
    set_parameter(gm, layer, "weight", weight.double() / factors.reshape(-1, 1, 1, 1))
    if bias is not None:
        set_parameter(gm, layer, "bias", bias.double() / factors)
    set_bounds(layer, float((low / factors).min()), float((high / factors).max()), "balanced channels")
    constant = store_constant(gm, f"{layer.name}.factors", factors.reshape(1, -1, 1, 1), gate)
    set_bounds(constant, 0.0, 1.0, "balanced channels")
    restored = call(gm, aten.mul.Tensor, layer, constant, before=gate, like=layer)
    set_bounds(restored, -SATURATED, SATURATED, "saturated sigmoid")
    gate.replace_input_with(layer, restored)
    for reader, start in site.readers:
        _undo(gm, reader, start, factors)


def _undo(gm: fx.GraphModule, reader: fx.Node, start: int, factors: Tensor) -> None:
    """Multiply the weights of `reader` that read the channels from `start` on by their factors."""
    weight, groups = parameter(gm, reader, "weight"), argument(reader, "groups")
    assert weight is not None and isinstance(groups, int)
    outputs, inputs = weight.shape[:2]
    each = torch.ones(inputs * groups, dtype=torch.float64)
    each[start : start + factors.numel()] = factors
    columns = each.reshape(groups, 1, inputs).expand(-1, outputs // groups, -1).reshape(outputs, inputs, 1, 1)
    set_parameter(gm, reader, "weight", weight.double() * columns)


def _sites(gm: fx.GraphModule) -> tuple[list[_Site], list[Skipped]]:
    found, skipped = [], []
    for gate in calls(gm, aten.sigmoid.default):
        layer, users = gate.args[0], list(gate.users)
        if not isinstance(layer, fx.Node) or layer.target is not aten.conv2d.default or len(users) != 1:
            continue
        result = users[0]
        product = result.target is aten.mul.Tensor and set(result.all_input_nodes) == {layer, gate}
        if not product or set(layer.users) != {gate, result}:
            continue
        try:
            if parameter(gm, layer, "weight") is None:
                raise _BlockedError("the weight before it is computed")
            found.append(_Site(layer, gate, result, tuple(_readers(gm, result, 0))))
        except _BlockedError as error:
            skipped.append(Skipped(result.name, str(error)))
    return found, skipped


def _readers(gm: fx.GraphModule, node: fx.Node, start: int) -> Iterator[tuple[fx.Node, int]]:
    """The convolutions that read `node`, and at which of their channels it begins."""
    for user in node.users:
        if user.target is aten.conv2d.default and parameter(gm, user, "weight") is not None:
            yield user, start
        elif user.target in _PASSING:
            yield from _readers(gm, user, start)
        elif user.target is aten.cat.default and argument(user, "dim") in (1, -3):
            parts = user.args[0]
            assert isinstance(parts, (list, tuple))
            for place, part in enumerate(parts):
                if part is node:
                    before = sum(shape_of(p)[1] for p in parts[:place] if isinstance(p, fx.Node))
                    yield from _readers(gm, user, start + before)
        else:
            raise _BlockedError(f"{user.name} reads it, through which scales do not pass")
