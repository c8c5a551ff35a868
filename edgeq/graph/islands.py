"""Which operations of a quantized graph stay float because 8 bits there cost the outputs most.

Every tensor that carries a grid is tried alone: all other activations are left in float, and the error of the outputs
is its score, as in ZeroQ (arXiv 2001.00281). Then the worst ones are freed together, few by few, in the simulation of
everything else; the fewest within 1 dB of the best that freeing reached are kept. Together, because taking single
layers out of a quantized network helps only when their neighbours go with them. Of these, what costs many bytes or much
time goes back to integers, the dearest first, as long as the 1 dB is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgeq.graph.kinds import op_kind
from edgeq.graph.legalize import Legalized
from edgeq.graph.placement import Placement, data_operands, weight_of
from edgeq.graph.rewrite import fetch, shape_of
from edgeq.graph.widths import relative_error
from edgeq.progress import Advance
from edgeq.quant.sensitivity import measured

COUNTS = (1, 2, 3, 4, 6, 8, 12)
"""Numbers of tensors that are freed together."""

NEAR = 1.25
"""1 dB: noise a quarter above that of the best."""

MOST_MACS = 0.25
"""Largest share of the multiplications that may stay float."""

WORTH = 0.002
"""Error of all outputs (27 dB) below which nothing needs to be freed."""

DEAR = 0.02
"""Shares of the weights and of the multiplications, added up, from which on a tensor is worth a try without it."""

_BITS = 8
_Q = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DQ = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_POINTWISE = frozenset({"add", "sub", "mul", "sigmoid", "tanh", "silu", "gelu", "relu", "hardtanh", "hardswish"})

Sample = tuple[Tensor, ...]
Place = Callable[[tuple[str, ...]], Placement]
"""The placement in which the named operations stay float."""


@dataclass(frozen=True)
class IslandChoice:
    """The decision.

    Args:
        ops: Operations that stay float, in the order of the graph.
        tensors: The tensors they were freed for, the worst first.
        alone: Error of the outputs with one tensor alone on its grid, by its name, for the worst.
        errors: Error of the outputs with so many of the worst tensors freed.
        mac_share: Share of the multiplications that stay float.
        weight_share: Share of the weights that stay float.
        error: Error of the outputs with `tensors` freed.
    """

    ops: tuple[str, ...]
    tensors: tuple[str, ...]
    alone: Mapping[str, float]
    errors: Mapping[int, float]
    mac_share: float
    weight_share: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form for `evidence.json`."""
        return {
            "ops": list(self.ops),
            "tensors": list(self.tensors),
            "error_alone": dict(self.alone),
            "error_by_number_freed": {str(k): v for k, v in self.errors.items()},
            "error": self.error,
            "float_mac_share": round(self.mac_share, 4),
            "float_weight_share": round(self.weight_share, 4),
        }


@torch.no_grad()
def choose_islands(
    graph: fx.GraphModule,
    legalized: Legalized,
    place: Place,
    samples: Sequence[Sample],
    *,
    count: int | None = None,
    journal: Path | None = None,
    key: str = "",
    advance: Advance | None = None,
) -> IslandChoice:
    """Find the operations to keep float.

    Args:
        graph: The float graph that was legalized.
        legalized: Everything quantized that the runtime can.
        place: Placement with operations kept float.
        samples: Inputs; two or three are enough to rank.
        count: Tensors to free; None for what measurement says.
        journal: File to continue from, see `measured`.
        key: What the measurements depend on.
        advance: Called with 1 after each tensor.

    Raises:
        ModelError: An error is not finite.
    """
    full = place(())
    trial = _Trial(legalized.simulation, full, samples)
    units = tried_units(graph, full)
    if not units or count == 0:
        return IslandChoice((), (), {}, {}, 0.0, 0.0, 0.0)
    alone = measured(
        {unit: [_BITS] for unit in units}, lambda unit, _: trial.alone(unit), journal=journal, key=key, progress=advance
    )
    ranked = sorted((unit for unit, _ in alone), key=lambda unit: -alone[unit, _BITS])
    options = [_option(graph, full, place, ranked[:n]) for n in ((count,) if count else COUNTS) if n <= len(ranked)]
    kept = [_Option((), (), frozenset(), 0.0, 0.0)]
    kept += [o for o in options if count or o.mac_share <= MOST_MACS]
    errors = {len(option.units): trial.without(option.freed) for option in kept}
    most = max(min(errors.values()) * NEAR, WORTH)
    chosen = kept[-1] if count else next(o for o in kept if errors[len(o.units)] <= most)
    error = errors[len(chosen.units)]
    if not count:
        chosen, error = _without_dear(chosen, error, most, lambda us: _option(graph, full, place, us), trial)
    scores = {unit: alone[unit, _BITS] for unit in ranked[: max(len(chosen.units), 4)]}
    return IslandChoice(chosen.ops, chosen.units, scores, errors, chosen.mac_share, chosen.weight_share, error)


def tried_units(graph: fx.GraphModule, full: Placement) -> tuple[str, ...]:
    """The grids that `choose_islands` tries, each by the root of its group.

    Neither those that the runtime dictates nor those of constants, which are as rounded in the reference, like weights.
    """
    constants = {n.name for n in graph.graph.nodes if n.op == "get_attr"}
    found = {root: None for name, root in full.groups.items() if root not in full.fixed and name not in constants}
    return tuple(found)


@dataclass(frozen=True)
class _Option:
    """What freeing some tensors means."""

    units: tuple[str, ...]
    ops: tuple[str, ...]
    freed: frozenset[str]
    mac_share: float
    weight_share: float

    @property
    def price(self) -> float:
        """A share of the multiplications takes time, one of the weights four bytes for each instead of one."""
        return self.mac_share + self.weight_share


def _option(graph: fx.GraphModule, full: Placement, place: Place, units: Sequence[str]) -> _Option:
    """The operations that must be float so that no tensor of `units` is on a grid, and all tensors freed by that."""
    members = {name for name, root in full.groups.items() if root in units}
    ops = _touching(graph, full, members)
    left = place(ops)
    costs = {n.name: _costs(graph, n) for n in graph.graph.nodes}
    shares = [sum(costs[n][i] for n in ops) / (sum(cost[i] for cost in costs.values()) or 1) for i in range(2)]
    return _Option(tuple(units), ops, frozenset(full.specs) - frozenset(left.specs), *shares)


def _without_dear(
    chosen: _Option, error: float, most: float, option: Callable[[Sequence[str]], _Option], trial: _Trial
) -> tuple[_Option, float]:
    """What is left of `chosen`, and its error, when dear tensors that are not needed for an error of `most` go."""
    for unit in sorted(chosen.units, key=lambda u: -option([u]).price):
        fewer = option([u for u in chosen.units if u != unit])
        if chosen.price - fewer.price >= DEAR and (tried := trial.without(fewer.freed)) <= most:
            chosen, error = fewer, tried
    return chosen, error


def _touching(graph: fx.GraphModule, full: Placement, members: set[str]) -> tuple[str, ...]:
    """Integer operations that write or read a tensor of `members`, and pointwise ones caught between such."""
    integer = {name for name, op in full.ops.items() if op.mode == "static"}
    found: set[str] = set()
    for node in graph.graph.nodes:
        if node.name not in integer:
            continue
        reads = any(o.name in members for o in data_operands(node, node.name in full.weights))
        if reads or (node.name in members and node.name in full.produced):
            found.add(node.name)
    for node in graph.graph.nodes:  # an activation that its layer absorbs goes with it, and the other way round
        if node.name in full.absorbed and (node.name in found or node.all_input_nodes[0].name in found):
            found |= {node.name, node.all_input_nodes[0].name}
    changed = True
    while changed:
        changed = False
        for node in graph.graph.nodes:
            if node.name in found or node.name not in integer or op_kind(node) not in _POINTWISE:
                continue
            feeds = all(o.name in found for o in data_operands(node, weighted=False))
            if feeds and any(user.name in found for user in node.users):
                found.add(node.name)
                changed = True
    return tuple(node.name for node in graph.graph.nodes if node.name in found)


def _costs(graph: fx.GraphModule, node: fx.Node) -> tuple[int, int]:
    """Multiplications of a layer with a constant weight, and the numbers in it; 0 for everything else."""
    path = weight_of(node) if op_kind(node) in ("conv2d", "linear") else None
    if path is None:
        return 0, 0
    weight = fetch(graph, path)
    return int(np.prod(shape_of(node))) * weight[0].numel(), weight.numel()


class _Trial:
    """Errors of the outputs of a simulation with some of its activation grids taken out."""

    def __init__(self, simulation: fx.GraphModule, full: Placement, samples: Sequence[Sample]) -> None:
        self._simulation, self._samples = simulation, samples
        self._everything = frozenset(full.specs)
        self._groups = full.groups
        self._order = list(simulation.graph.nodes)
        # The reference has the rounded weights: what they cost, no float activation brings back.
        self._exact = [self._run(sample, self._everything, None) for sample in samples]

    def alone(self, unit: str) -> float:
        """With only the tensors of one group on their grid."""
        members = frozenset(name for name, root in self._groups.items() if root == unit)
        return self._error(self._everything - members)

    def without(self, freed: frozenset[str]) -> float:
        """With all tensors on their grids but `freed`."""
        return self._error(freed)

    def _error(self, freed: frozenset[str]) -> float:
        errors = []
        for sample, (reference, values) in zip(self._samples, self._exact, strict=True):
            outputs, _ = self._run(sample, freed, values)
            errors.append(np.mean([relative_error(a, b) for a, b in zip(reference, outputs, strict=True)]))
        return float(np.mean(errors))

    def _run(
        self, sample: Sample, freed: frozenset[str], known: Mapping[fx.Node, Any] | None
    ) -> tuple[tuple[Tensor, ...], dict[fx.Node, Any]]:
        """Outputs and all values; what lies before the first grid in use is taken from `known`."""
        runner = _Partial(self._simulation, freed, keep=known is None)
        start: dict[fx.Node, Any] | None = None
        if known is not None:
            first = next((i for i, n in enumerate(self._order) if _grid_of(n) not in (None, *freed)), len(self._order))
            start = {node: known[node] for node in islice(self._order, first) if node in known}
        outputs = runner.run(*sample, initial_env=start)
        return tuple(outputs), dict(runner.env)


def _grid_of(node: fx.Node) -> str | None:
    """The activation whose quantizer or dequantizer `node` is."""
    if node.target is _DQ and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if node.target is not _Q or not isinstance(node.args[0], fx.Node) or node.args[0].op == "get_attr":
        return None
    return node.args[0].name


class _Partial(fx.Interpreter):
    """Runs a simulation with the quantizers of some tensors passing everything."""

    def __init__(self, graph: fx.GraphModule, freed: frozenset[str], keep: bool) -> None:
        super().__init__(graph, garbage_collect_values=not keep)
        self._freed = freed

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, unless it is a quantizer that is out of use."""
        if _grid_of(n) in self._freed and isinstance(n.args[0], fx.Node):
            return self.env[n.args[0]]
        return super().run_node(n)
