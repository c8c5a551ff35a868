"""The layers of a graph that are decided about, what goes with them, and what each costs the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

import torch
from torch import Tensor, fx

from edgeq.exporters.base import Exporter
from edgeq.graph.kinds import op_kind
from edgeq.graph.legalize import legalize
from edgeq.graph.placement import Placement, data_operands
from edgeq.graph.rewrite import fetch, shape_of
from edgeq.graph.widths import NARROW, WIDE, largest, relative_error, weight_cost
from edgeq.progress import Advance
from edgeq.quant.sensitivity import measured
from edgeq.quant.statistics import TensorStatistics
from edgeq.recipe import place_scheme, width_problem
from edgeq.search.problem import FLOAT, Layer
from edgeq.search.table import Cell
from edgeq.spec import Precision

PRODUCTS = ("linear", "conv2d", "matmul")
"""Kinds that a search decides about; whatever else a scheme quantizes goes with them."""

Sample = tuple[Tensor, ...]


def find_layers(
    graph: fx.GraphModule, exporter: Exporter, scheme: str, precision: Precision, *, narrow: bool
) -> tuple[Layer, ...]:
    """The products that a scheme quantizes, with the widths a runtime has for them.

    Args:
        graph: The graph that is quantized.
        exporter: The runtime.
        scheme: The scheme.
        precision: Range estimator, structure, and what stays float anyway.
        narrow: Offer 4 bits: they take half the bytes and never less time, since kernels widen them.
    """
    wide = place_scheme(graph, exporter, scheme, precision)[1]
    specs, readers = width_problem(graph, exporter, scheme, precision, 0, 0)
    floats = exporter.float_format == exporter.name
    found = []
    for node in graph.graph.nodes:
        op = wide.ops.get(node.name)
        if op is None or op.mode == "float" or op.op not in PRODUCTS:
            continue
        path = wide.weights.get(node.name)
        offered = [FLOAT] if floats else []
        sizes = {FLOAT: 0, WIDE: 0}
        if path is not None:
            weight = fetch(graph, path)
            offered += sorted((b for b in specs.weights[path] if b == WIDE or narrow), reverse=True)
            sizes = {b: weight_cost(weight, spec) for b, spec in specs.weights[path].items()}
            sizes[FLOAT] = 4 * weight.numel()
        else:
            offered.append(WIDE)
        tie = path if path is not None and len(readers[path]) > 1 else ""
        sizes = {b: sizes[b] for b in offered}
        found.append(Layer(node.name, op.op, _shape(node), _macs(graph, node), tuple(offered), sizes, tie))
    return tuple(found)


def kept_float(graph: fx.GraphModule, placement: Placement, layers: Set[str], freed: Set[str]) -> tuple[str, ...]:
    """Operations that stay float when some layers do: these, and what would be integers between floats only.

    Args:
        graph: The graph that is quantized.
        placement: Of the scheme with every layer quantized.
        layers: All layers that are decided about.
        freed: Those of them in float.
    """
    return _follow(graph, placement, lambda name: name in freed if name in layers else None, alone=False)


def all_but(graph: fx.GraphModule, placement: Placement, layers: Set[str], name: str) -> tuple[str, ...]:
    """Operations that stay float when only one layer is quantized, with what reads nothing but that layer."""
    return _follow(graph, placement, lambda other: other != name if other in layers else None, alone=True)


def _follow(
    graph: fx.GraphModule, placement: Placement, freed: Callable[[str], bool | None], alone: bool
) -> tuple[str, ...]:
    """The freed layers, and every operation between them that follows what it reads.

    Args:
        graph: The graph.
        placement: With every layer quantized.
        freed: Of a layer, whether it is float; None for what is no layer.
        alone: An operation follows one freed operand; otherwise it follows only when all it reads are.
    """
    floats: list[str] = []
    states: dict[fx.Node, bool | None] = {}  # freed, quantized, or None: float in any case
    for node in graph.graph.nodes:
        if node.op != "call_function":
            states[node] = None
            continue
        chosen = freed(node.name)
        op = placement.ops.get(node.name)
        read = [states[o] for o in data_operands(node, node.name in placement.weights) if o.op != "get_attr"]
        if chosen is None and op is not None and op.mode == "float":
            states[node] = None
            continue
        if chosen is None and alone:
            chosen = True in read or False not in read
        elif chosen is None:
            chosen = True in read and False not in read
        states[node] = chosen
        if chosen and op is not None:
            floats.append(node.name)
    return tuple(floats)


@torch.no_grad()
def layer_losses(
    graph: fx.GraphModule,
    exporter: Exporter,
    scheme: str,
    precision: Precision,
    statistics: Mapping[str, TensorStatistics],
    layers: Sequence[Layer],
    samples: Sequence[Sample],
    *,
    journal: Path | None = None,
    key: str = "",
    advance: Advance | None = None,
) -> dict[Cell, float]:
    """Relative error of the outputs with one layer alone quantized, activations included, at each width but float.

    Errors of several layers add up as far as they are independent, as ZeroQ (arXiv 2001.00281) and AdaQuant (arXiv
    2006.10518) take them to be.

    Args:
        graph: The graph that is quantized.
        exporter: The runtime.
        scheme: The scheme.
        precision: As for `find_layers`.
        statistics: Of the tensors that the scheme calibrates.
        layers: From `find_layers`.
        samples: Inputs.
        journal: File to continue from, see `measured`.
        key: What the measurements depend on.
        advance: Called with 1 after each.

    Raises:
        ModelError: A loss is not finite.
    """
    reference = [graph(*sample) for sample in samples]
    damage = largest(relative_error)
    placement = place_scheme(graph, exporter, scheme, precision)[1]
    names = {layer.name for layer in layers}

    def try_one(name: str, bits: int) -> float:
        kept = (*precision.keep_float, *all_but(graph, placement, names, name))
        alone = Precision(
            observer=precision.observer,
            products_only=precision.products_only,
            keep_float=kept,
            narrow=(name,) if bits == NARROW else (),
        )
        config, placed = place_scheme(graph, exporter, scheme, alone)
        simulation = legalize(graph, placed, config, exporter.rules, statistics, scheme).simulation
        return math.fsum(damage(t, simulation(*x)) for t, x in zip(reference, samples, strict=True)) / len(samples)

    offered = {layer.name: [b for b in layer.bits if b != FLOAT] for layer in layers}
    return measured(offered, try_one, journal=journal, key=key, progress=advance)


def _macs(graph: fx.GraphModule, node: fx.Node) -> int:
    """Multiply-accumulates of a product."""
    outputs = math.prod(shape_of(node))
    if op_kind(node) == "matmul":
        return outputs * shape_of(node.all_input_nodes[0])[-1]
    weight = fetch(graph, str(node.all_input_nodes[1].target))
    return outputs * (weight.numel() // len(weight))


def _shape(node: fx.Node) -> str:
    """Kind, shapes and settings of a product in words."""
    tensors = ["x".join(map(str, n.meta["val"].shape)) for n in node.all_input_nodes if "val" in n.meta]
    settings = [str(a) for a in node.args if not isinstance(a, fx.Node) and a is not None]
    return " ".join([op_kind(node), *tensors, *settings])
