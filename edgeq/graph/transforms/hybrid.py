"""Hybrid vision transformers: where convolutions hand over to attention and back, and which grids suit these places.

The tensors that cross between the two domains have the most uneven channels of such networks (MobileViT,
EfficientFormer), so a choice that is right elsewhere can ruin them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from torch import Tensor, fx

from edgeq.graph.rewrite import aten, shape_of
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.projections import is_move
from edgeq.quant.calibrator import Calibrator
from edgeq.quant.uniform import fake_quantize, qparams_from_range
from edgeq.spec import PerChannel, PerTensor, QParams, QuantSpec

_CONVOLUTIONS = (aten.conv2d.default, aten.conv_transpose2d.input)
_LAYERS = (aten.linear.default, *_CONVOLUTIONS)


@dataclass(frozen=True)
class BridgeBlock:
    """A run of attention and linears between convolutions. Nodes by name, in execution order.

    Args:
        inputs: Tensors of the convolutional domain that enter it.
        first: Its layers and products that read nothing but them.
        exits: Convolutions that read what it computes; empty where the network ends in it.
    """

    inputs: tuple[str, ...]
    first: tuple[str, ...]
    exits: tuple[str, ...]


@dataclass(frozen=True)
class BridgeGrid:
    """The grid chosen for the input of a bridge layer.

    Args:
        layer: The layer.
        tensor: Its input.
        qparams: Grid of the input: per tensor or per channel, symmetric or not.
        error: Mean squared error of the layer's output with its input on this grid.
        errors: The same for every option, by name such as `tensor/asymmetric`.
    """

    layer: str
    tensor: str
    qparams: QParams
    error: float
    errors: Mapping[str, float]


def bridge_blocks(gm: fx.GraphModule) -> tuple[BridgeBlock, ...]:
    """The places where convolutions hand over to linears and attention, and back.

    Source: Q-HyViT (Lee et al., arXiv:2303.12557), which names the layers between the two domains by hand for each
    network; here they are found: a block is a connected run of linears over tokens and products of activations, with
    nothing but pointwise operations, norms and moves between. Patch embeddings do not count: a plain ViT has none.
    Attention written with convolutions (EfficientFormerV2) gives one block for each product, more than the paper names.

    Args:
        gm: Canonical graph with valid shapes.
    """
    before = _nearest(gm)
    home: dict[fx.Node, set[fx.Node]] = {}
    for node in (n for n in gm.graph.nodes if _tokens(n)):
        region = {node}.union(*(home[n] for n in before[node] if n in home))
        home.update(dict.fromkeys(region, region))
    regions = list({id(region): region for region in home.values()}.values())
    return tuple(block for block in (_block(gm, region, before) for region in regions) if block is not None)


def choose_bridge_grids(
    gm: fx.GraphModule,
    batches: Sequence[tuple[Tensor, ...]],
    bits: int = 8,
    per_channel: bool = True,
) -> tuple[BridgeGrid, ...]:
    """For each layer at a bridge, the granularity and symmetry of its input's grid with the least output error.

    Every grid represents 0, also where all values are positive: a zero point that would lie outside the codes (Q-HyViT
    calls it overflow) and be clamped there would shift every value.

    Source: Q-HyViT (Lee et al., arXiv:2303.12557), hybrid reconstruction. Deviations: ranges are the smallest and
    largest values seen rather than searched; the error is the squared one of the layer's own output instead of one of
    the whole bridge weighted by the Hessian. Grids per channel are for depthwise kernels or for `reparameterize`.

    Args:
        gm: Canonical graph.
        batches: Inputs of the graph; run twice.
        bits: Width of the codes.
        per_channel: Whether a grid for each channel may be chosen.

    Raises:
        DataError: There is no batch, or an input holds NaN or infinity.
        UsageError: `bits` is out of range.
    """
    nodes = {n.name: n for n in gm.graph.nodes}
    names = dict.fromkeys(name for block in bridge_blocks(gm) for name in (*block.first, *block.exits))
    layers = [nodes[name] for name in names if nodes[name].target in _LAYERS]
    if not layers:
        return ()
    tensors = {n: cast("fx.Node", n.args[0]).name for n in layers}
    axes = {tensors[n]: _channel_axis(n) for n in layers}
    seen = channel_statistics(gm, list(axes), batches, axes)
    options = {n.name: _options(seen[tensors[n]], axes[tensors[n]], bits, per_channel) for n in layers}
    watcher = _Comparison(gm, options)
    for batch in batches:
        watcher.observe(batch)
    result = []
    for node in layers:
        errors = {name: total / watcher.counts[node.name] for name, total in watcher.totals[node.name].items()}
        best = min(errors, key=errors.__getitem__)  # the first of equals: the simplest
        result.append(BridgeGrid(node.name, tensors[node], options[node.name][best], errors[best], errors))
    return tuple(result)


class _Comparison(Calibrator):
    """Runs a graph and sums up the output errors of layers for several grids of their inputs."""

    def __init__(self, graph: fx.GraphModule, options: Mapping[str, Mapping[str, QParams]]) -> None:
        super().__init__(graph, ())
        self.totals = {layer: dict.fromkeys(grids, 0.0) for layer, grids in options.items()}
        self.counts = dict.fromkeys(options, 0)
        self._options = options

    def run_node(self, n: fx.Node) -> object:
        """Run one node, and again for each grid if it is a compared layer."""
        value = super().run_node(n)
        if n.name in self._options and isinstance(value, Tensor):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            run = cast("Callable[..., Tensor]", n.target)
            for name, grid in self._options[n.name].items():
                other = run(fake_quantize(cast("Tensor", args[0]), grid), *args[1:], **kwargs)
                self.totals[n.name][name] += float((other - value).double().square().sum())
            self.counts[n.name] += value.numel()
        return value


def _options(seen: ChannelStatistics, axis: int, bits: int, per_channel: bool) -> dict[str, QParams]:
    """Grids to compare, the simplest first."""
    result = {}
    low, high = seen.low.numpy(), seen.high.numpy()
    for symmetric in (False, True):
        spec = QuantSpec(bits=bits, symmetric=symmetric, granularity=PerTensor())
        kind = "symmetric" if symmetric else "asymmetric"
        result[f"tensor/{kind}"] = qparams_from_range(np.asarray(low.min()), np.asarray(high.max()), spec)
        if per_channel:
            result[f"channel/{kind}"] = qparams_from_range(low, high, replace(spec, granularity=PerChannel(axis)))
    return dict(sorted(result.items(), key=lambda item: item[0].startswith("channel")))


def _block(
    gm: fx.GraphModule, members: set[fx.Node], before: Mapping[fx.Node, frozenset[fx.Node]]
) -> BridgeBlock | None:
    """The bridge around a run of token operations; None when no convolution but a patch embedding leads to it."""
    first = [n for n in gm.graph.nodes if n in members and before[n] and all(_convolves(b) for b in before[n])]
    first = [n for n in first if not all(_embeds(b) for b in before[n])]
    exits = [n for n in gm.graph.nodes if _convolves(n) and before[n] & members]
    inputs = dict.fromkeys(_crossing(operand).name for n in first for operand in n.all_input_nodes if operand in before)
    return BridgeBlock(tuple(inputs), tuple(n.name for n in first), tuple(n.name for n in exits)) if first else None


def _crossing(node: fx.Node) -> fx.Node:
    """What `node` was before norms and moves."""
    while is_move(node) or node.target is aten.layer_norm.default:
        node = cast("fx.Node", node.args[0])
    return node


def _nearest(gm: fx.GraphModule) -> dict[fx.Node, frozenset[fx.Node]]:
    """For each computed node, the layers and products whose results reach it without another in between."""
    before: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op not in ("call_function", "placeholder"):
            continue
        sources = [n for n in node.all_input_nodes if n in before]
        parts = [frozenset({n}) if _convolves(n) or _tokens(n) else before[n] for n in sources]
        before[node] = frozenset().union(*parts)
    return before


def _convolves(node: fx.Node) -> bool:
    """Whether `node` is a layer of the convolutional domain."""
    return node.target in _CONVOLUTIONS


def _tokens(node: fx.Node) -> bool:
    """Whether `node` is a linear over tokens or a product of two activations."""
    if node.target is aten.linear.default:
        return len(shape_of(node)) > 2
    return node.target is aten.matmul.default and sum(n.op == "call_function" for n in node.all_input_nodes) == 2


def _embeds(node: fx.Node) -> bool:
    """Whether `node` is a patch embedding: a convolution straight from an input of the graph."""
    source = node.args[0]
    return isinstance(source, fx.Node) and _crossing(source).op == "placeholder"


def _channel_axis(node: fx.Node) -> int:
    """Axis of the channels in the input of a layer."""
    rank = len(shape_of(node))
    return rank - 1 if node.target is aten.linear.default else rank - 3
