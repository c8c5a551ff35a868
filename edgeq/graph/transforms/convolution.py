"""What makes the tensors of convolutional networks fit grids of 8 bits: quiet channels are enlarged."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor, fx

from edgeq.graph.bounds import set_bounds
from edgeq.graph.kinds import op_kind
from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import aten, axes_of, call, calls, refresh, shape_of, single_user
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.parameters import argument, parameter, set_parameter, store_constant
from edgeq.graph.transforms.report import Applied, Batches, Report, Skipped

ALPHA = 0.75
"""How far channels are evened out: 0 leaves them, 1 gives each a grid of its own; by measurement on YOLOX-nano
(docs/decisions/0013): 0.5 leaves quiet channels too few codes, 1 spreads the columns of the next layer's weights."""

UNEVEN = 0.25
"""Channels around ReLU are evened out where half of them reach less than this part of the largest: two bits are lost.
Where they differ less, the next layer's weights lose more than activations gain (docs/decisions/0023)."""

SATURATED = 8.0
"""Beyond it a sigmoid differs from 0 and 1 by a tenth of an 8-bit code, and `x * sigmoid(x)` by 0.003 from ReLU."""

CLIPPED = 3.0
"""Beyond it a hard sigmoid is 0 and 1, and a hard swish is a ReLU."""

_SIGMOID_GRID = (-SATURATED, SATURATED)
_CLIP_GRID = (-CLIPPED * 128 / 127, CLIPPED)  # with 0 in the middle, so that the upper end is a code
_LEVELS = 255  # factors are multiples of 1/255, which a grid of 8 bits from 0 to 1 holds exactly
_QUIET = 0.02  # a channel is treated as if it reached at least this: dead ones must not get factors of 0
_LEAST = 1e-3  # the same around ReLU, as a part of the largest
_PASSING = (
    aten.relu.default,
    *(aten.max_pool2d.default, aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec),
    *(aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default),
)
_FLAT = ("reshape", "flatten", "squeeze")


_FIXED = 0  # number of the channel whose factor is 1


@dataclass(frozen=True)
class _Site:
    """A convolution, and its SiLU or hard swish, if it has one.

    Args:
        layer: The convolution.
        result: Whose channels may be scaled: the product of the convolution and the factor; itself without one.
        gate: What reads it on the way to the factor: the sigmoid, or the sum before the clip.
        grid: Ends of what the factor is made of; beyond the upper one and its negative it does not change.
    """

    layer: fx.Node
    result: fx.Node
    gate: fx.Node | None = None
    grid: tuple[float, float] = (0.0, 0.0)

    def reach(self, seen: ChannelStatistics) -> Tensor:
        """How far from 0 the channels `(C,)` reach, as far as their activation makes something of it.

        Around ReLU, all the same where they differ too little to be evened out.
        """
        if self.gate is not None:
            return torch.maximum(seen.high.clamp(min=_QUIET), -seen.low.clamp(-self.grid[1], 0))
        clipped = all(user.target is aten.relu.default for user in self.layer.users)
        found = seen.high.clamp(min=0) if clipped else seen.absmax
        found = found.clamp(min=max(_LEAST * float(found.max()), 1e-30))
        return found if float((found / found.max()).median()) < UNEVEN else torch.ones_like(found)


def fit_convolution(graph: fx.GraphModule, batches: Batches) -> tuple[fx.GraphModule, tuple[Applied, ...]]:
    """Balance the channels of convolutions in a copy; the function stays, up to float rounding.

    A graph without `x * sigmoid(x)` or `x * relu6(x + 3)` between convolutions, and without channels that differ much
    elsewhere, is returned as it is.

    Args:
        graph: Canonical float graph, prepared for the runtime.
        batches: Calibration inputs; read once.

    Raises:
        DataError: There is no batch, or an input holds NaN or infinity.
    """
    axes = uneven_tensors(graph)
    if not axes:
        return graph, ()
    copied = copy.deepcopy(graph)
    report = balance_channels(copied, channel_statistics(copied, list(axes), batches(), axes))
    if not report.sites and not report.skipped:
        return graph, ()
    return rebuild(copied), (Applied("balance channels", len(report.sites), report.skipped),)


def uneven_tensors(gm: fx.GraphModule) -> dict[str, int]:
    """What `balance_channels` takes statistics of: convolutions whose channels may be scaled, by axis of channels."""
    return {site.layer.name: 1 for site in _Flow(gm).open_sites()}


def balance_channels(gm: fx.GraphModule, statistics: Mapping[str, ChannelStatistics]) -> Report[str]:
    """Divide each channel of a convolution by a factor of its own, and multiply the weights that read it by it.

    Through ReLU, and where there is no activation, a scale passes as it is, for nothing. Before `x * sigmoid(x)`, and
    `x * relu6(x + 3)`, six times a hard swish, it does not. There, with factors s of the channels, `x' = x / s` comes
    out of the convolution, the sigmoid reads `x' s`, and the product `x' sigmoid(x' s)` is `SiLU(x) / s`, which the
    columns of the next layers' weights undo. One multiplication for each value is all it costs, and its grid needs to
    reach `SATURATED` only. A channel that reaches r beside one that reaches R gets `s = (r / R) ** ALPHA`. What lies
    below `-SATURATED` gets no codes: SiLU makes nearly nothing of it. Scales pass to convolutions and linear layers,
    also through joined and split channels, pools, nearest upsampling, products with what has none (squeeze and
    excitation) and residual sums: channels that are added have one factor, that of the one which reaches furthest in
    its tensor.

    Source: cross-layer equalization (Nagel et al., arXiv:1906.04721, section 4.1), which needs an activation with
    `f(s x) = s f(x)`. It evens out the ranges of weights; ours have a scale a channel, so that activations are evened
    out, and around ReLU only where they differ much (`UNEVEN`). The exponent is SmoothQuant's alpha (arXiv:2211.10438,
    equation 4). What is done around swishes is ours.

    Args:
        gm: Canonical graph, changed in place; refreshed afterwards. Bounds are noted on the convolutions and on what
            the factors are made of.
        statistics: Of the tensors of `uneven_tensors`, by name; convolutions without are skipped.

    Returns:
        The names of the convolutions; of those around which nothing was done, the ones before a swish.
    """
    flow = _Flow(gm)
    for site in flow.sites:
        if site.layer.name not in statistics:
            flow.fix(flow.channels[site.result], f"no statistics of {site.layer.name}")
    factors = flow.factors({site: site.reach(statistics[site.layer.name]) for site in flow.open_sites()})
    done = []
    for site in flow.open_sites():
        own = factors[flow.channels[site.result]]
        if site.gate is not None or bool((own != 1).any()):
            _scale(gm, site.layer, own)
            done.append(site.layer.name)
        if site.gate is not None:
            _restore(gm, site, site.gate, statistics[site.layer.name], own)
    for reader, numbers in flow.readers.items():
        _undo(gm, reader, factors[numbers])
    gm.graph.lint()
    gm.recompile()
    refresh(gm)
    return Report(tuple(done), flow.skipped())


def _scale(gm: fx.GraphModule, layer: fx.Node, factors: Tensor) -> None:
    """Divide the channels that `layer` puts out by factors."""
    weight, bias = parameter(gm, layer, "weight"), parameter(gm, layer, "bias")
    assert weight is not None
    set_parameter(gm, layer, "weight", weight.double() / factors.reshape(-1, 1, 1, 1))
    if bias is not None:
        set_parameter(gm, layer, "bias", bias.double() / factors)


def _restore(gm: fx.GraphModule, site: _Site, gate: fx.Node, seen: ChannelStatistics, factors: Tensor) -> None:
    """Put the factors back for what makes the factor of a swish, and note the bounds of both."""
    high, low, layer = seen.high.clamp(min=_QUIET), seen.low.clamp(-site.grid[1], 0), site.layer
    set_bounds(layer, float((low / factors).min()), float((high / factors).max()), "balanced channels")
    constant = store_constant(gm, f"{layer.name}.factors", factors.reshape(1, -1, 1, 1), gate)
    set_bounds(constant, 0.0, 1.0, "balanced channels")
    restored = call(gm, aten.mul.Tensor, layer, constant, before=gate, like=layer)
    set_bounds(restored, *site.grid, "saturated factor")
    gate.replace_input_with(layer, restored)


def _undo(gm: fx.GraphModule, reader: fx.Node, factors: Tensor) -> None:
    """Multiply the weights of `reader` by the factors of the channels that it reads."""
    if bool((factors == 1).all()):
        return
    weight = parameter(gm, reader, "weight")
    groups = argument(reader, "groups") if reader.target is aten.conv2d.default else 1
    assert weight is not None and isinstance(groups, int)
    outputs, inputs, *taps = weight.shape
    columns = factors.reshape(groups, 1, inputs).expand(-1, outputs // groups, -1)
    set_parameter(gm, reader, "weight", weight.double() * columns.reshape(outputs, inputs, *(1 for _ in taps)))


class _Flow:
    """Where the channels of convolutions go, which of them must have one factor, and which cannot have any.

    Channels are numbered through; what is added to each other has one number in the end. `channels` are the numbers of
    every tensor that scales reach, `readers` those of what convolutions read.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.sites = tuple(_sites(gm))
        self.channels: dict[fx.Node, list[int]] = {}
        self.readers: dict[fx.Node, list[int]] = {}
        self._parents = [_FIXED]
        self._reasons: dict[_Site, str] = {}
        results = {site.result for site in self.sites}
        for node in gm.graph.nodes:
            if scaled := [n for n in node.all_input_nodes if n in self.channels]:
                self._pass(gm, node, scaled)
            if node in results:
                first = len(self._parents)
                self._parents += range(first, first + shape_of(node)[1])
                self.channels[node] = list(range(first, len(self._parents)))

    def open_sites(self) -> list[_Site]:
        """The sites of which a channel may have a factor."""
        return [s for s in self.sites if any(self._root(n) != _FIXED for n in self.channels[s.result])]

    def skipped(self) -> tuple[Skipped, ...]:
        """The swishes of which none may, with the reason."""
        done, other = self.open_sites(), "it is joined with channels that have no factor"
        closed = [s for s in self.sites if s.gate is not None and s not in done]
        return tuple(Skipped(s.result.name, self._reasons.get(s, other)) for s in closed)

    def factors(self, reach: Mapping[_Site, Tensor]) -> Tensor:
        """The factor of each number: by the largest share that one of its channels has in the reach of its tensor."""
        shares = torch.zeros(len(self._parents), dtype=torch.float64)
        for site, own in reach.items():
            roots = torch.tensor([self._root(n) for n in self.channels[site.result]])
            shares.scatter_reduce_(0, roots, own / own.max(), "amax")
        shares[_FIXED] = 1
        roots = torch.tensor([self._root(n) for n in range(len(self._parents))])
        return (shares[roots] ** ALPHA * _LEVELS).round().clamp(min=1) / _LEVELS

    def fix(self, numbers: Sequence[int], reason: str) -> None:
        """Give channels the factor 1."""
        roots = {self._root(number) for number in numbers}
        for site in self.sites:
            if any(self._root(number) in roots for number in self.channels.get(site.result, ())):
                self._reasons.setdefault(site, reason)
        for root in roots:
            self._join(_FIXED, root)

    def _pass(self, gm: fx.GraphModule, node: fx.Node, scaled: Sequence[fx.Node]) -> None:
        """Follow the channels of `scaled` through `node`."""
        if _is_reader(gm, node):
            self.readers[node] = self.channels[scaled[0]]
        elif node.target in _PASSING or _keeps_channels(node) or (_is_product(node) and len(scaled) == 1):
            self.channels[node] = self.channels[scaled[0]]
        elif node.target is aten.slice.Tensor and argument(node, "dim") == 1:
            self.channels[node] = self.channels[scaled[0]][slice(*node.args[2:])]  # type: ignore[arg-type]
        elif node.target is aten.cat.default and argument(node, "dim") in (1, -3):
            parts = cast("list[fx.Node]", node.args[0])
            self.channels[node] = [n for part in parts for n in self._numbers(part)]
        elif _is_sum(node):
            first, second = (self._numbers(part) for part in node.all_input_nodes)
            for one, other in zip(first, second, strict=True):
                self._join(one, other)
            self.channels[node] = first
        else:
            for tensor in scaled:
                self.fix(self.channels[tensor], f"{node.name} reads it, through which scales do not pass")

    def _numbers(self, node: fx.Node) -> list[int]:
        """The numbers of a tensor's channels; scales do not reach all tensors."""
        return self.channels.get(node) or [_FIXED] * shape_of(node)[1]

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            number = self._parents[number]
        return number

    def _join(self, first: int, second: int) -> None:
        low, high = sorted((self._root(first), self._root(second)))
        self._parents[high] = low


def _is_reader(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a layer whose inputs are channels."""
    source = node.args[0] if node.args else None
    flat = node.target is aten.linear.default and isinstance(source, fx.Node) and len(shape_of(source)) == 2
    return (flat or node.target is aten.conv2d.default) and parameter(gm, node, "weight") is not None


def _keeps_channels(node: fx.Node) -> bool:
    """Whether `node` averages over an image, or makes a list of channels of an image of one pixel."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or len(shape_of(source)) != 4:
        return False
    before, after = shape_of(source), shape_of(node)
    if node.target is aten.mean.dim:
        return set(axes_of(node.args[1], 4)) <= {2, 3}
    return op_kind(node) in _FLAT and after[:2] == before[:2] and prod(before) == prod(after[:2])


def _is_product(node: fx.Node) -> bool:
    """Whether `node` multiplies with something that has a value for each channel, or one for all."""
    parts = [n for n in node.all_input_nodes if len(shape_of(n)) > 1]
    return node.target is aten.mul.Tensor and all(shape_of(n)[1] in (1, shape_of(node)[1]) for n in parts)


def _is_sum(node: fx.Node) -> bool:
    """Whether `node` adds two tensors of one shape."""
    parts = node.all_input_nodes
    return (
        node.target is aten.add.Tensor
        and not node.kwargs
        and len(parts) == 2
        and shape_of(parts[0]) == shape_of(parts[1]) == shape_of(node)
    )


def _sites(gm: fx.GraphModule) -> Iterator[_Site]:
    """The swishes between a convolution with a constant weight and whatever reads them, then the other convolutions."""
    layers = [n for n in calls(gm, aten.conv2d.default) if parameter(gm, n, "weight") is not None]
    for factor in calls(gm, aten.sigmoid.default, aten.hardtanh.default):
        gate, grid = _gate_of(factor)
        layer, users = gate.args[0], list(factor.users)
        if not isinstance(layer, fx.Node) or layer not in layers or len(users) != 1:
            continue
        result = users[0]
        product = result.target is aten.mul.Tensor and set(result.all_input_nodes) == {layer, factor}
        if product and set(layer.users) == {gate, result}:
            layers.remove(layer)
            yield _Site(layer, result, gate, grid)
    yield from (_Site(layer, layer) for layer in layers)


def _gate_of(factor: fx.Node) -> tuple[fx.Node, tuple[float, float]]:
    """What makes a factor of a tensor, and its grid: a sigmoid, or the sum before a clip."""
    total = factor.args[0]
    if factor.target is aten.sigmoid.default or tuple(factor.args[1:]) != (0.0, 2 * CLIPPED):
        return factor, _SIGMOID_GRID
    summed = isinstance(total, fx.Node) and total.target is aten.add.Tensor and single_user(total)
    if not isinstance(total, fx.Node) or not summed or total.args[1] != CLIPPED or total.kwargs:
        return factor, _CLIP_GRID
    return total, _CLIP_GRID
