"""Layer by layer: how far the simulation of a quantized graph is from float, to name what costs the most."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from edgeq.graph.bounds import bounds_of
from edgeq.graph.kinds import op_kind
from edgeq.graph.legalize import Legalized
from edgeq.graph.placement import TABLE
from edgeq.graph.rewrite import fetch
from edgeq.metrics import sqnr_db
from edgeq.spec import QuantPlan

Array = NDArray[Any]

FOLDED = 2
_FOLDABLE = frozenset({"add", "sub", "mul", "div", "relu", "hardtanh", "clamp", "reshape", "permute", "transpose"})
"""What converters make one with the layer before, and how many of them."""


@dataclass(frozen=True)
class LayerFidelity:
    """One operation of the quantized graph against float.

    Args:
        name: FX node name.
        op: Kind.
        mode: How it runs.
        own_db: SQNR when it alone is quantized and reads exact inputs (teacher-forced).
        total_db: SQNR of its output in the quantized network, with everything before it quantized too.
        file_db: The same of the file itself, run by its runtime; None where its tensor could not be told.
        weights_db: As `own_db`, with its constants quantized alone.
        inputs_db: As `own_db`, with what it reads quantized alone.
        output_db: As `own_db`, with its result quantized alone.
        weight_bits: Width of its weight; None without a quantized one.
    """

    name: str
    op: str
    mode: str
    own_db: float
    total_db: float
    weights_db: float
    inputs_db: float
    output_db: float
    weight_bits: int | None = None
    file_db: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the output of chosen nodes."""

    def __init__(self, graph: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(graph, garbage_collect_values=True)
        self.wanted = wanted
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, keeping its value if it was asked for."""
        value = super().run_node(n)
        if n.name in self.wanted and isinstance(value, Tensor):
            self.values[n.name] = value.detach()
        return value


def layer_fidelity(
    graph: fx.GraphModule,
    legalized: Legalized,
    inputs: Sequence[tuple[Tensor, ...]],
    recorded: Sequence[Mapping[str, Array]] = (),
) -> list[LayerFidelity]:
    """Compare every integer operation with float, averaged over `inputs`; the largest own error first.

    Args:
        graph: The float graph that was legalized.
        legalized: Its quantization.
        inputs: Network inputs; two or three are enough to rank.
        recorded: What layers gave in the written file, by layer, for each of `inputs`; see `layers_by_weight`.
    """
    simulated = {n.name: n for n in legalized.simulation.graph.nodes}
    reference_nodes = {n.name: n for n in graph.graph.nodes}
    chosen = {n: o for n, o in legalized.plan.ops.items() if o.mode != "float"}
    # An activation that its producer's kernel absorbs is judged together with it, under the producer's name.
    owners = {n: reference_nodes[n].all_input_nodes[0].name for n in legalized.absorbed}
    chosen = {n: o for n, o in chosen.items() if n not in owners.values()}
    sums: dict[str, list[float]] = {name: [0.0] * 5 for name in chosen}
    of_file: dict[str, list[float]] = {}
    behind = {name: _behind(reference_nodes[name]) for name in chosen}
    for position, example in enumerate(inputs):
        held = recorded[position] if position < len(recorded) else {}
        fed = [p for name in [*chosen, *owners.values()] for p in reference_nodes[name].all_input_nodes]
        feeding = {p.name for p in fed if p.op != "get_attr"}
        feeding -= set(owners.values())
        followers = {n.name for name in chosen if owners.get(name, name) in held for n in behind[name]}
        exact = Recorder(graph, set(chosen) | feeding | followers)
        network = Recorder(legalized.simulation, set(chosen))
        with torch.no_grad():
            exact.run(*example)
            network.run(*example)
            for name in chosen:
                pair = _Pair(graph, legalized.simulation, simulated, exact.values)
                node, twin = reference_nodes[name], simulated[name]
                found = pair.errors(node, twin, _on_grid(network.values[name], twin))
                sums[name] = [total + error for total, error in zip(sums[name], found, strict=True)]
                array = held.get(owners.get(name, name))
                if array is not None:
                    near = _best_likeness(exact.values, (node, *behind[name]), array, name in owners)
                    of_file.setdefault(name, []).append(near)
    count = max(1, len(inputs))
    rows = []
    for name, op in chosen.items():
        owner = legalized.plan.ops.get(owners.get(name, ""), op)
        kind = op.op if owner is op else f"{owner.op}+{op.op}"
        bits = _weight_bits(reference_nodes[owner.name], legalized.plan)
        alone, within, weights, read, written = (total / count for total in sums[name])
        mean = sum(of_file.get(name, [-math.inf])) / count
        in_file = mean if mean > -math.inf else None
        rows.append(LayerFidelity(owner.name, kind, op.mode, alone, within, weights, read, written, bits, in_file))
    return sorted(rows, key=lambda row: row.own_db)


def layers_by_weight(graph: fx.GraphModule, plan: QuantPlan) -> dict[str, list[str]]:
    """Names of the layers of `graph` that multiply by each planned weight, in execution order."""
    found: dict[str, list[str]] = {}
    for node in graph.graph.nodes:
        for constant in node.all_input_nodes if op_kind(node) != TABLE else ():
            tensor = plan.tensors.get(str(constant.target)) if constant.op == "get_attr" else None
            if tensor is not None and tensor.role == "weight":
                found.setdefault(tensor.name, []).append(node.name)
    return found


def _behind(node: fx.Node) -> list[fx.Node]:
    """The operations behind a layer that a converter may have made one with it."""
    found: list[fx.Node] = []
    while len(node.users) == 1 and len(found) < FOLDED and op_kind(node := next(iter(node.users))) in _FOLDABLE:
        found.append(node)
    return found


def _best_likeness(exact: Mapping[str, Tensor], nodes: Sequence[fx.Node], array: Array, absorbed: bool) -> float:
    """SQNR of a file's tensor to the one of `nodes`, a layer and what may be one with it, that it comes closest to."""
    return max(_likeness(exact[n.name], n, array, absorbed and n is nodes[0]) for n in nodes)


def _likeness(truth: Tensor, node: fx.Node, array: Array, absorbed: bool) -> float:
    """SQNR of a file's tensor in the form that fits best; minus infinity where none does.

    Channels may stand last, and an absorbed activation may be left to the grid behind it.
    """
    if array.size != truth.numel():
        return -math.inf
    layouts = [array, np.moveaxis(array, -1, 1)] if array.ndim > 2 else [array]
    forms = [torch.from_numpy(np.ascontiguousarray(a.reshape(truth.shape))) for a in layouts]
    if absorbed:
        activation: Any = node.target
        forms += [activation(form, *node.args[1:], **node.kwargs) for form in forms]
    exact = _saturated(truth, node).numpy()
    return max(sqnr_db(exact, _saturated(form, node).numpy()) for form in forms)


def _weight_bits(node: fx.Node, plan: QuantPlan) -> int | None:
    constants = [plan.tensors.get(str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
    return next((t.bits for t in constants if t is not None and t.role == "weight"), None)


def _saturated(value: Tensor, node: fx.Node) -> Tensor:
    """`value` within the bounds noted on `node`: what a transform lets saturate on purpose is no error."""
    bounds = bounds_of(node)
    return value if bounds is None else value.clamp(bounds.low, bounds.high)


@dataclass(frozen=True)
class _Pair:
    """Runs single operations on exact inputs, with their own quantizers or without.

    Args:
        graph: The float graph.
        simulation: Its quantized twin.
        twins: Nodes of the simulation by name.
        exact: Float values of what the operations read, by name.
    """

    graph: fx.GraphModule
    simulation: fx.GraphModule
    twins: Mapping[str, fx.Node]
    exact: Mapping[str, Tensor]

    def run(
        self, node: fx.Node, twin: fx.Node, *, weights: bool = True, inputs: bool = True, output: bool = True
    ) -> Tensor:
        """The value of `node`, with the quantizers of its constants, of what it reads and of its result or without.

        Args:
            node: In the float graph.
            twin: The same in the simulation.
            weights: Constants as the simulation has them.
            inputs: Through the quantizers of the inputs.
            output: Through the quantizer of the result.
        """
        if twin.target is not node.target:  # a picked row, whose simulation is the row's codes times their scale
            result = self._evaluate(twin) if weights else self.exact[node.name]
            return _on_grid(result, twin) if output else result

        def value_of(ours: Any, theirs: Any) -> Any:
            if isinstance(ours, (list, tuple)):
                return type(ours)(value_of(a, b) for a, b in zip(ours, theirs, strict=True))
            if not isinstance(theirs, fx.Node):
                return theirs
            if not isinstance(ours, fx.Node):  # a number that the simulation holds as a constant
                return self._compute(theirs) if weights else ours
            if ours.op == "get_attr":
                return self._compute(theirs) if weights else fetch(self.graph, str(ours.target))
            if ours.name in self.exact:
                return self._compute(theirs) if inputs else self.exact[ours.name]
            twin = self.twins[ours.name]  # absorbed by `node`
            return self.run(ours, twin, weights=weights, inputs=inputs, output=False)

        # Either side may leave trailing defaults out.
        args = [value_of(a, b) for a, b in zip_longest(node.args[: len(twin.args)], twin.args)]
        kwargs = {k: value_of(node.kwargs.get(k), v) for k, v in twin.kwargs.items()}
        target: Callable[..., Tensor] = twin.target  # type: ignore[assignment]
        result = target(*args, **kwargs)
        return _on_grid(result, twin) if output else result

    def errors(self, node: fx.Node, twin: fx.Node, within: Tensor) -> list[float]:
        """SQNR of `node` alone, of its value `within` the network, and of its constants, inputs and result alone."""
        truth = _saturated(self.exact[node.name], node).numpy()
        values = [
            self.run(node, twin),
            within,
            self.run(node, twin, inputs=False, output=False),
            self.run(node, twin, weights=False, output=False),
            self.run(node, twin, weights=False, inputs=False),
        ]
        return [sqnr_db(truth, _saturated(value, node).numpy()) for value in values]

    def _compute(self, node: fx.Node) -> Any:
        """Evaluate `node` of the simulation from the ancestors whose float value is known."""
        if node.name in self.exact:
            return self.exact[node.name]
        return fetch(self.simulation, str(node.target)) if node.op == "get_attr" else self._evaluate(node)

    def _evaluate(self, node: fx.Node) -> Any:
        """What `node` of the simulation makes of its operands."""
        args = fx.node.map_arg(node.args, self._compute)
        kwargs = fx.node.map_arg(node.kwargs, self._compute)
        target: Any = node.target
        return target(*args, **kwargs)


def _on_grid(value: Tensor, node: fx.Node) -> Tensor:
    """`value` through the quantizer behind `node`, where the runtime has one."""
    for user in node.users:
        if "quantize_per_tensor" in str(user.target) and len(user.users) == 1:
            quantize: Any = user.target
            follower = next(iter(user.users))
            restore: Any = follower.target
            return restore(quantize(value, *user.args[1:]), *follower.args[1:])  # type: ignore[no-any-return]
    return value
