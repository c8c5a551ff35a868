"""From statistics to the plan and to the graph that ships.

`legalize` gives every tensor of a `Placement` its grid, rounds the weights, and returns three things that agree with
each other: the plan, the graph for the converter (weights lying on their grid, quantize/dequantize pairs around
integer operations) and the simulation of what the runtime will do, on which fidelity is measured before an artifact
exists.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers torch.ops.quantized_decomposed

from edgeq.errors import InternalError
from edgeq.graph.bounds import bounds_of
from edgeq.graph.kinds import op_kind
from edgeq.graph.placement import TABLE, BackendRules, Placement, data_operands, weight_position
from edgeq.graph.rewrite import fetch
from edgeq.graph.solve import Rounding, Solved, apply_solved, solve_weights
from edgeq.graph.transforms.parameters import parameter
from edgeq.quant.ranges import choose_range
from edgeq.quant.statistics import TensorStatistics
from edgeq.quant.uniform import qparams_from_range, quantize
from edgeq.quant.weights import cover_bias, round_weights, weight_qparams
from edgeq.spec import PerChannel, PerGroup, QParams, QuantConfig, QuantPlan, QuantSpec, TensorPlan, codes_hash

WEIGHT_PATH = "edgeq_weight"
"""Where the meta data of a node of the emission says which weight it stands for, if its first operand does not."""

_SCALAR_KINDS = frozenset({"add", "sub", "mul"})
_Q_TENSOR = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DQ_TENSOR = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_Q_CHANNEL = torch.ops.quantized_decomposed.quantize_per_channel.default
_DQ_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default


@dataclass(frozen=True)
class Legalized:
    """A quantized graph, ready to emit.

    Args:
        plan: The decisions.
        emission: Graph for the converter.
        simulation: Graph that computes what the runtime will compute, up to rounding flips.
        absorbed: Activations that run inside the kernel of the operation before them.
    """

    plan: QuantPlan
    emission: fx.GraphModule
    simulation: fx.GraphModule
    absorbed: frozenset[str] = frozenset()


def legalize(
    graph: fx.GraphModule,
    placement: Placement,
    config: QuantConfig,
    rules: BackendRules,
    statistics: Mapping[str, TensorStatistics],
    scheme: str,
    rounding: Rounding | None = None,
) -> Legalized:
    """Give every tensor of `placement` its grid and write the grids into copies of `graph`.

    Args:
        graph: Canonical float graph; not changed.
        placement: Result of `place` for the same graph, config and rules.
        config: Specs of weights.
        rules: The backend.
        statistics: Observed values of the tensors in `observed(graph, placement)`; may be empty when there are none.
        scheme: Name recorded in the plan.
        rounding: How weights reach their grids; to the nearest code when None.
    """
    emission = copy.deepcopy(graph)
    tensors = _activation_grids(graph, placement, statistics, rules)
    grids = _WeightGrids(graph, placement, config, rules, tensors)
    if rounding is not None and rounding.needs_data:
        quantized = copy.deepcopy(graph)
        _insert_activation_grids(quantized, placement, QuantPlan(scheme, tensors, placement.ops))
        _insert_dynamic(quantized, placement, rules)
        solved = _nearest(graph, placement, grids, _tables(placement))  # no product that rounding could make good
        for name, layer in solved.items():
            apply_solved(quantized, {n.name: n for n in quantized.graph.nodes}[name], placement.weights[name], layer)
        done = {placement.weights[name] for name in solved}
        layers = {name: path for name, path in placement.weights.items() if path not in done}
        solved |= solve_weights(graph, quantized, layers, grids, rounding)
    else:
        solved = _nearest(graph, placement, grids, placement.weights)
    nodes = {n.name: n for n in emission.graph.nodes}
    for name, layer in solved.items():
        attribute = placement.weights[name]
        apply_solved(emission, nodes[name], attribute, layer)
        spec = config.resolve(name, placement.ops[name].op).weight
        digest = codes_hash(layer.codes.numpy())
        tensors[attribute] = TensorPlan(attribute, "weight", layer.qparams, spec.observer, layer.note, digest)
    plan = QuantPlan(scheme, tensors, placement.ops)
    _insert_activation_grids(emission, placement, plan)
    _insert_weight_grids(emission, placement, plan)
    emission.graph.lint()
    emission.recompile()
    simulation = emission
    if any(op.mode == "dynamic" for op in plan.ops.values()):
        simulation = copy.deepcopy(emission)
        _insert_dynamic(simulation, placement, rules)
        simulation.recompile()
    return Legalized(plan, emission, simulation, placement.absorbed)


def observed(graph: fx.GraphModule, placement: Placement) -> list[str]:
    """Names of the tensors whose range calibration has to find, sorted."""
    bounded = {n.name for n in graph.graph.nodes if bounds_of(n) is not None}
    fixed = {name for name in placement.specs if placement.groups[name] in placement.fixed}
    return sorted(set(placement.specs) - bounded - fixed)


def _activation_grids(
    graph: fx.GraphModule, placement: Placement, statistics: Mapping[str, TensorStatistics], rules: BackendRules
) -> dict[str, TensorPlan]:
    """One grid per group; the group's range covers the range of every member that has one of its own."""
    nodes = {n.name: n for n in graph.graph.nodes}
    ranges: dict[str, list[tuple[float, float, str]]] = {}
    for name, spec in placement.specs.items():
        root, bounds = placement.groups[name], bounds_of(nodes[name])
        if bounds is not None:
            ranges.setdefault(root, []).append((bounds.low, bounds.high, bounds.origin))
        elif root not in placement.fixed:
            ranges.setdefault(root, []).append(_range_of(nodes[name], spec, statistics, rules))
    plans = {}
    for name, spec in placement.specs.items():
        root = placement.groups[name]
        if root in placement.fixed:
            scale, zero_point = placement.fixed[root]
            qparams = QParams(spec, np.array(scale, np.float32), np.array(zero_point, np.int32))
            provenance = f"fixed by {rules.name}"
        else:
            low, high = min(r[0] for r in ranges[root]), max(r[1] for r in ranges[root])
            qparams = qparams_from_range(np.float64(low), np.float64(high), spec)
            provenance = ranges[root][0][2]
            if len(ranges[root]) > 1:
                provenance += f", shared with {len(ranges[root]) - 1} tensors"
        plans[name] = TensorPlan(name, "activation", qparams, provenance)
    return plans


def _range_of(
    node: fx.Node, spec: QuantSpec, statistics: Mapping[str, TensorStatistics], rules: BackendRules
) -> tuple[float, float, str]:
    """Lower and upper end of what a tensor's grid covers, and where they come from."""
    if node.name in statistics:
        seen = statistics[node.name]
        return (*choose_range(seen, spec), f"{spec.observer} over {seen.count} values")
    if (kind := op_kind(node)) not in rules.fixed:
        raise InternalError(f"no statistics for {node.name}", code="EQ-Z002", place=node.name)
    # Made by a float operation after all: calibration took it for a kernel's, whose grid covers what the kind puts out.
    scale, zero_point = rules.fixed[kind]
    return scale * (spec.qmin - zero_point), scale * (spec.qmax - zero_point), f"range of {kind}"


class _WeightGrids:
    """The grid of each layer's weight, wide enough for its bias."""

    def __init__(
        self,
        graph: fx.GraphModule,
        placement: Placement,
        config: QuantConfig,
        rules: BackendRules,
        activations: Mapping[str, TensorPlan],
    ) -> None:
        self._nodes = {n.name: n for n in graph.graph.nodes}
        self._placement, self._config, self._rules, self._activations = placement, config, rules, activations

    def __call__(self, name: str, weight: Tensor, bias: Tensor | None) -> QParams:
        """Grid of the weight of layer `name`, which a rounder may have moved."""
        kind = self._placement.ops[name].op
        spec = self._config.resolve(name, kind).weight
        if isinstance(spec.granularity, PerChannel):
            spec = replace(spec, granularity=PerChannel(self._rules.weighted[kind]))
        qparams = weight_qparams(weight, spec, name=self._placement.weights[name])
        if self._placement.ops[name].mode == "static" and bias is not None and not self._rules.inputs_only:
            # A bias beyond 32 bits of scale_in * scale_weight would be changed by the converter without a word.
            source = data_operands(self._nodes[name], weighted=True)[0].name
            qparams = cover_bias(qparams, bias, float(self._activations[source].uniform.scale))
        return qparams


def _tables(placement: Placement) -> list[str]:
    """Operations that pick rows of their weight; a layer that shares the weight takes the rows as they are."""
    return [name for name in placement.weights if placement.ops[name].op == TABLE]


def _nearest(
    graph: fx.GraphModule, placement: Placement, grids: _WeightGrids, names: Iterable[str]
) -> dict[str, Solved]:
    """The weights of some operations to their nearest codes, which needs no data; a shared weight once."""
    nodes = {node.name: node for node in graph.graph.nodes}
    solved: dict[str, Solved] = {}
    done: set[str] = set()
    for name in names:
        attribute = placement.weights[name]
        if attribute not in done:
            done.add(attribute)
            weight = fetch(graph, attribute)
            bias = None if placement.ops[name].op == TABLE else parameter(graph, nodes[name], "bias")
            qparams = grids(name, weight, bias)
            solved[name] = Solved(qparams, round_weights(weight, qparams, name=attribute), None, "nearest")
    return solved


def _insert_activation_grids(graph: fx.GraphModule, placement: Placement, plan: QuantPlan) -> None:
    """Quantize/dequantize behind each planned tensor.

    Every reader sees the grid if an integer kernel produces the tensor, otherwise only integer readers do.
    """
    for node in list(graph.graph.nodes):
        static = node.name in plan.ops and plan.ops[node.name].mode == "static"
        if static and op_kind(node) in _SCALAR_KINDS:
            _materialize_scalar(graph, node)
    integer_readers: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        op = plan.ops.get(node.name)
        if (op is not None and op.mode == "static") or node.name in placement.produced:
            for operand in data_operands(node, node.name in placement.weights):
                integer_readers.setdefault(operand.name, []).append(node)
    for node in list(graph.graph.nodes):
        entry = plan.tensors.get(node.name)
        if entry is None or entry.role != "activation" or node.name not in placement.specs:
            continue
        readers = list(node.users) if node.name in placement.produced else integer_readers.get(node.name, [])
        if not readers:
            continue
        with graph.graph.inserting_after(node):
            pair = _pair_per_tensor(graph.graph, node, entry.uniform)
        for reader in readers:
            reader.replace_input_with(node, pair)


def _materialize_scalar(graph: fx.GraphModule, node: fx.Node) -> None:
    """Turn a Python scalar operand into a constant on an exact one-value grid: integer kernels take tensors only.

    It has the rank of the result, without which TFLite's converter cannot move it into an image's layout.
    """
    for index, value in enumerate(node.args[:2]):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        magnitude = abs(float(value)) or 1.0
        spec = QuantSpec(symmetric=True, narrow=True)
        qparams = QParams(spec, np.array(magnitude / spec.qmax, np.float32), np.array(0, np.int32))
        name = f"{node.name}_scalar"
        graph.register_buffer(name, torch.full([1] * max(node.meta["val"].dim(), 1), float(value)))
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
        with graph.graph.inserting_after(constant):
            node.update_arg(index, _pair_per_tensor(graph.graph, constant, qparams))


def _pair_per_tensor(graph: fx.Graph, node: fx.Node, qparams: QParams) -> fx.Node:
    """Quantize/dequantize behind `node`, at the graph's insertion point."""
    spec = qparams.spec
    dtype = torch.int8 if spec.bits <= 8 else torch.int16
    grid = (float(qparams.scale), int(qparams.zero_point), spec.qmin, spec.qmax, dtype)
    quantized = graph.call_function(_Q_TENSOR, (node, *grid))
    quantized.meta["val"] = node.meta.get("val")
    with graph.inserting_after(quantized):
        restored = graph.call_function(_DQ_TENSOR, (quantized, *grid))
    restored.meta["val"] = node.meta.get("val")
    return restored


def _insert_weight_grids(graph: fx.GraphModule, placement: Placement, plan: QuantPlan) -> None:
    """Quantize/dequantize between each planned weight and its operation."""
    pairs: dict[str, fx.Node] = {}
    for node in list(graph.graph.nodes):
        attribute = placement.weights.get(node.name)
        if attribute is None:
            continue
        source = node.args[weight_position(node)]
        if not isinstance(source, fx.Node):
            raise InternalError(f"{node.name} has no weight node", code="EQ-Z002", place=node.name)
        if op_kind(node) == TABLE:
            _pick_codes(graph, node, plan.tensors[attribute].uniform.on_rows(), attribute)
            continue
        if attribute not in pairs:
            qparams = plan.tensors[attribute].uniform.on_rows()
            insert = _scale_groups if isinstance(qparams.spec.granularity, PerGroup) else _pair_per_channel
            pairs[attribute] = insert(graph, source, qparams, attribute)
        node.update_arg(1, pairs[attribute])


def _pick_codes(graph: fx.GraphModule, node: fx.Node, qparams: QParams, attribute: str) -> None:
    """Let a table hold codes: a row's codes and its scale are picked and multiplied, the rest stays in the file.

    No converter keeps a quantized table an integer by itself. With the integers of a layer that shares the weight, the
    file stores both once.
    """
    table, stem = fetch(graph, attribute), attribute.replace(".", "_")
    columns = qparams.scale.shape[1] if isinstance(qparams.spec.granularity, PerGroup) else 1
    scale = torch.from_numpy(qparams.scale).reshape(-1, columns).expand(len(table), columns).contiguous()
    rows = node.args[1]
    assert isinstance(rows, fx.Node)
    shape = list(node.meta["val"].shape)
    graph.register_buffer(f"{stem}_codes", quantize(table, qparams).to(torch.int8))
    graph.register_buffer(f"{stem}_rows", scale)
    aten = torch.ops.aten
    with graph.graph.inserting_before(node):
        if rows.meta["val"].dim() != 1:
            rows = graph.graph.call_function(aten.reshape.default, (rows, [-1]))
        codes, scales = graph.graph.get_attr(f"{stem}_codes"), graph.graph.get_attr(f"{stem}_rows")
        picked: list[Any] = [
            graph.graph.call_function(aten.index_select.default, (t, 0, rows)) for t in (codes, scales)
        ]
        picked[0] = graph.graph.call_function(aten._to_copy.default, (picked[0],), {"dtype": torch.float32})
        grouped = [*shape[:-1], columns, shape[-1] // columns] if columns > 1 else shape
        if len(grouped) != 2:
            wanted = (grouped, [*grouped[:-1], 1])
            picked = [
                graph.graph.call_function(aten.reshape.default, (p, s)) for p, s in zip(picked, wanted, strict=True)
            ]
        if columns > 1:
            picked = [graph.graph.call_function(aten.mul.Tensor, tuple(picked)), shape]
    node.target = aten.reshape.default if columns > 1 else aten.mul.Tensor
    node.args, node.kwargs = tuple(picked), {}
    node.meta[WEIGHT_PATH] = attribute


def _scale_groups(graph: fx.GraphModule, source: fx.Node, qparams: QParams, attribute: str) -> fx.Node:
    """The codes of a weight times the scales of its groups: there is no quantize/dequantize operation for groups."""
    weight, stem = fetch(graph, attribute), attribute.replace(".", "_")
    codes_of_groups = quantize(weight, qparams).to(torch.int8).reshape(*qparams.scale.shape, -1)
    graph.register_buffer(f"{stem}_groups", codes_of_groups)
    graph.register_buffer(f"{stem}_group_scale", torch.from_numpy(qparams.scale)[..., None].contiguous())
    aten = torch.ops.aten
    with graph.graph.inserting_before(source):
        codes, scale = graph.graph.get_attr(f"{stem}_groups"), graph.graph.get_attr(f"{stem}_group_scale")
    with graph.graph.inserting_after(source):
        reals = graph.graph.call_function(aten._to_copy.default, (codes,), {"dtype": torch.float32})
    with graph.graph.inserting_after(reals):
        scaled = graph.graph.call_function(aten.mul.Tensor, (reals, scale))
    with graph.graph.inserting_after(scaled):
        result: fx.Node = graph.graph.call_function(aten.reshape.default, (scaled, list(weight.shape)))
    result.meta |= {"val": weight, WEIGHT_PATH: attribute}
    return result


def _pair_per_channel(graph: fx.GraphModule, source: fx.Node, qparams: QParams, attribute: str) -> fx.Node:
    spec = qparams.spec
    with graph.graph.inserting_after(source):
        if not isinstance(spec.granularity, PerChannel):
            return _pair_per_tensor(graph.graph, source, qparams)
        stem = attribute.replace(".", "_")
        graph.register_buffer(f"{stem}_scale", torch.from_numpy(qparams.scale))
        graph.register_buffer(f"{stem}_zero_point", torch.from_numpy(qparams.zero_point).to(torch.int64))
        scale = graph.graph.get_attr(f"{stem}_scale")
        zero_point = graph.graph.get_attr(f"{stem}_zero_point")
    grid = (scale, zero_point, spec.granularity.axis, spec.qmin, spec.qmax, torch.int8)
    anchor = scale if scale > zero_point else zero_point
    with graph.graph.inserting_after(anchor):
        quantized = graph.graph.call_function(_Q_CHANNEL, (source, *grid))
    with graph.graph.inserting_after(quantized):
        return graph.graph.call_function(_DQ_CHANNEL, (quantized, *grid))


def dynamic_fake_quantize(x: Tensor, per_row: bool) -> Tensor:
    """What runtimes make of an input at run time: asymmetric 8 bit, range from the values and zero.

    XNNPACK's `qd8` kernels and ONNX's DynamicQuantizeLinear share the formula; they differ in what shares a grid.

    Args:
        x: Input; `per_row` gives each vector along the last axis its own grid (linear in XNNPACK), otherwise each batch
            item (convolution in XNNPACK; linear in onnxruntime, whose inputs have one item).
        per_row: See `x`.
    """
    axes = (-1,) if per_row else tuple(range(1, x.ndim))
    low = x.amin(dim=axes, keepdim=True).clamp(max=0.0)
    high = x.amax(dim=axes, keepdim=True).clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero_point = (-128 - low / scale).round()
    return ((x / scale).round() + zero_point).clamp(-128, 127).sub(zero_point).mul(scale)


def grouped_fake_quantize(x: Tensor, group: int) -> Tensor:
    """What OpenVINO makes of a layer's input at run time: symmetric 8 bit, one scale per `group` neighbouring inputs.

    Args:
        x: Input; groups lie along its last axis, the last one may be short.
        group: Inputs that share a scale.
    """
    size = x.shape[-1]
    groups = torch.nn.functional.pad(x, (0, -size % group)).reshape(*x.shape[:-1], -1, group)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    rounded: Tensor = ((groups / scale).round() * scale).flatten(-2)[..., :size]
    return rounded


def _insert_dynamic(graph: fx.GraphModule, placement: Placement, rules: BackendRules) -> None:
    for node in list(graph.graph.nodes):
        op = placement.ops.get(node.name)
        if op is None or op.mode != "dynamic":
            continue
        source = node.args[0]
        with graph.graph.inserting_before(node):
            if rules.dynamic_group:
                quantized = graph.graph.call_function(grouped_fake_quantize, (source, rules.dynamic_group))
            else:
                per_row = rules.dynamic_rows and op.op == "linear"
                quantized = graph.graph.call_function(dynamic_fake_quantize, (source, per_row))
        node.update_arg(0, quantized)
