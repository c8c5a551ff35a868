"""Layer by layer: how far the simulation of a quantized graph is from float, to name what costs the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgeq.graph.bounds import bounds_of
from edgeq.graph.legalize import Legalized
from edgeq.graph.rewrite import fetch
from edgeq.metrics import sqnr_db


@dataclass(frozen=True)
class LayerFidelity:
    """One operation of the quantized graph against float.

    Args:
        name: FX node name.
        op: Kind.
        mode: How it runs.
        own_db: SQNR when it alone is quantized and reads exact inputs (teacher-forced).
        total_db: SQNR of its output in the quantized network, with everything before it quantized too.
    """

    name: str
    op: str
    mode: str
    own_db: float
    total_db: float


class _Recorder(fx.Interpreter):
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
    graph: fx.GraphModule, legalized: Legalized, inputs: Sequence[tuple[Tensor, ...]]
) -> list[LayerFidelity]:
    """Compare every integer operation with float, averaged over `inputs`; the largest own error first.

    Args:
        graph: The float graph that was legalized.
        legalized: Its quantization.
        inputs: Network inputs; two or three are enough to rank.
    """
    simulated = {n.name: n for n in legalized.simulation.graph.nodes}
    reference_nodes = {n.name: n for n in graph.graph.nodes}
    chosen = {n: o for n, o in legalized.plan.ops.items() if o.mode != "float"}
    # An activation that its producer's kernel absorbs is judged together with it, under the producer's name.
    owners = {n: reference_nodes[n].all_input_nodes[0].name for n in legalized.absorbed}
    chosen = {n: o for n, o in chosen.items() if n not in owners.values()}
    sums: dict[str, list[float]] = {name: [0.0, 0.0] for name in chosen}
    for example in inputs:
        fed = [p for name in [*chosen, *owners.values()] for p in reference_nodes[name].all_input_nodes]
        feeding = {p.name for p in fed if p.op != "get_attr"}  # constants are as the simulation has rounded them
        feeding -= set(owners.values())
        exact = _Recorder(graph, set(chosen) | feeding)
        network = _Recorder(legalized.simulation, set(chosen))
        with torch.no_grad():
            exact.run(*example)
            network.run(*example)
            for name in chosen:
                truth = _saturated(exact.values[name], reference_nodes[name])
                forced = _run_alone(legalized.simulation, simulated[name], exact.values)
                sums[name][0] += sqnr_db(truth.numpy(), forced.numpy())
                total = _saturated(network.values[name], reference_nodes[name])
                sums[name][1] += sqnr_db(truth.numpy(), total.numpy())
    count = max(1, len(inputs))
    rows = []
    for name, op in chosen.items():
        owner = legalized.plan.ops.get(owners.get(name, ""), op)
        kind = op.op if owner is op else f"{owner.op}+{op.op}"
        rows.append(LayerFidelity(owner.name, kind, op.mode, sums[name][0] / count, sums[name][1] / count))
    return sorted(rows, key=lambda row: row.own_db)


def _saturated(value: Tensor, node: fx.Node) -> Tensor:
    """`value` within the bounds noted on `node`: what a transform lets saturate on purpose is no error."""
    bounds = bounds_of(node)
    return value if bounds is None else value.clamp(bounds.low, bounds.high)


def _run_alone(graph: fx.GraphModule, node: fx.Node, exact: dict[str, Tensor]) -> Tensor:
    """Evaluate `node` with its own quantizers on exact inputs, from the ancestors whose float value is known."""

    def value_of(argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        if argument.name in exact:
            return exact[argument.name]
        return compute(argument)

    def compute(current: fx.Node) -> Any:
        if current.op == "get_attr":
            return fetch(graph, str(current.target))
        args = fx.node.map_arg(current.args, value_of)
        kwargs = fx.node.map_arg(current.kwargs, value_of)
        target: Any = current.target
        return target(*args, **kwargs)

    result: Tensor = compute(node)
    for user in node.users:  # the output grid, where the runtime has one
        if "quantize_per_tensor" in str(user.target) and len(user.users) == 1:
            target: Any = user.target
            follower = next(iter(user.users))
            restore: Any = follower.target
            result = restore(target(result, *user.args[1:]), *follower.args[1:])
            break
    return result
