"""Which operations run as integers on a backend, and which tensors must therefore carry a grid.

A backend is described by data (`BackendRules`); this module turns the rules and a `QuantConfig` into a `Placement`:
the mode of every operation with the reason where it stays float, the tensors to calibrate, and the groups of tensors
that must share one grid. Nothing is calibrated yet, so what a target cannot run is known before any data is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, fx

from edgeq.graph.bounds import bounds_of
from edgeq.graph.kinds import op_kind
from edgeq.spec import Mode, OpPlan, QuantConfig, QuantSpec

DICTATED_BITS = 8
"""Width of the grids in `BackendRules.fixed`."""

TABLE = "embedding"
"""Kind of an operation that picks rows of its weight: it multiplies nothing, so its weight alone can be integers."""


@dataclass(frozen=True)
class BackendRules:
    """What a runtime can execute as integers.

    Args:
        name: Runtime, for messages.
        weighted: Kinds with a constant weight, and the axis of their output channels.
        dynamic: Kinds that can quantize their activations at run time.
        integer: Kinds with a kernel whose inputs and output are integers.
        movement: Kinds that only move values: the output carries the input's codes.
        same_scale: Kinds that compute but whose kernel wants one grid for inputs and output.
        fixed: Kinds whose output grid the runtime dictates: scale and zero point.
        fused: Activations that the preceding operation absorbs.
        absorbing: Kinds that absorb them beside the weighted ones.
        symmetric: Kinds with operands, by position, that the fast kernel wants on a grid with zero point 0; without
            grids of outputs, unsigned codes of values from 0 on will do.
        int4: Kinds whose weights the format holds in 4 bits.
        outputs: Kinds whose integer kernel writes codes, so that the result is on a grid of its own; None: all of them.
            Where there are none, a kernel reads codes, adds a float bias and writes reals, and an operand's grid stands
            before the moves that lead to it.
        early: Without outputs on grids: kinds behind which a grid must not stand, but before them.
        dynamic_group: Inputs that share a symmetric scale where activations are quantized at run time; 0 for
            asymmetric ranges.
        dynamic_rows: Without a group, each row of a linear layer's input has a range; otherwise the input has one.
        moves_together: What is moved out of one float tensor gets one grid.
        least_two_level: Values of a weight from which on two-level scales are worth what the file needs for them.
    """

    name: str
    weighted: Mapping[str, int]
    dynamic: frozenset[str]
    integer: frozenset[str]
    movement: frozenset[str]
    same_scale: frozenset[str]
    fixed: Mapping[str, tuple[float, int]]
    fused: frozenset[str]
    absorbing: frozenset[str] = frozenset()
    symmetric: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    int4: frozenset[str] = frozenset()
    outputs: frozenset[str] | None = None
    early: frozenset[str] = frozenset()
    dynamic_group: int = 0
    dynamic_rows: bool = True
    moves_together: bool = False
    least_two_level: int = 0

    def writes_codes(self, kind: str) -> bool:
        """Whether the integer kernel of `kind` writes codes; otherwise it writes reals."""
        return self.outputs is None or kind in self.outputs

    @property
    def inputs_only(self) -> bool:
        """Whether no kernel writes codes."""
        return self.outputs is not None and not self.outputs


@dataclass(frozen=True)
class Placement:
    """The structure of a quantized graph before calibration.

    Args:
        ops: Mode of each computing operation, in execution order.
        weights: Attribute path of the weight of each operation that quantizes it, by operation name.
        specs: Spec of each activation tensor that carries a grid, by node name.
        produced: Of these, the tensors that an integer kernel produces.
        groups: Representative of each tensor's shared-grid group.
        fixed: Grid dictated by the runtime, by representative.
        absorbed: Quantized activations that the operation before them absorbs.
    """

    ops: Mapping[str, OpPlan]
    weights: Mapping[str, str]
    specs: Mapping[str, QuantSpec]
    produced: frozenset[str]
    groups: Mapping[str, str]
    fixed: Mapping[str, tuple[float, int]]
    absorbed: frozenset[str]


@dataclass
class _Groups:
    """Union-find over tensor names."""

    parent: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def join(self, first: str, second: str) -> None:
        self.parent[self.find(second)] = self.find(first)


def place(graph: fx.GraphModule, config: QuantConfig, rules: BackendRules) -> Placement:
    """Decide modes, grids and groups for `graph` on the backend of `rules`.

    Args:
        graph: Canonical graph.
        config: Wishes; an operation that the backend has no integer kernel for stays float, with the reason.
        rules: The backend.
    """
    nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
    fused = _fused(nodes, rules)
    ops, weights = _modes(nodes, config, rules, fused)
    absorbed = set(fused.values())
    static = [n for n in nodes if n.name in ops and ops[n.name].mode == "static" and n not in absorbed]
    carriers = {fused.get(n, n) for n in static if rules.writes_codes(op_kind(n))}
    sources = {n: [_source(t, rules) for t in data_operands(n, n.name in weights)] for n in static}
    if rules.inputs_only:
        moved = {step for found in sources.values() for _, steps in found for step in steps}
    else:
        moved = _movement(nodes, rules, set(static), carriers)

    groups = _Groups()
    specs: dict[str, QuantSpec] = {}
    for node in static:
        wish = config.resolve(node.name, op_kind(node))
        for tensor, _ in sources[node]:
            specs[tensor.name] = _narrower(specs.get(tensor.name), wish.activation)
        result = fused.get(node, node)
        if result in carriers:
            specs[result.name] = _narrower(specs.get(result.name), wish.output or wish.activation)
    for node in nodes:
        if not rules.inputs_only and (node in moved or (node in carriers and op_kind(node) in rules.same_scale)):
            for operand in data_operands(node, weighted=False):
                specs.setdefault(node.name, specs[operand.name])
                groups.join(operand.name, node.name)
    if rules.moves_together:
        _join_moved(nodes, rules, specs, moved, groups)
    fixed = {groups.find(n.name): rules.fixed[op_kind(n)] for n in static if op_kind(n) in rules.fixed}
    operands = [sources[n][i][0] for n in static for i in rules.symmetric.get(op_kind(n), ())]
    centred = {groups.find(t.name) for t in operands if not (rules.inputs_only and _from_zero(t))} - set(fixed)
    specs = _shared(specs, groups, fixed, centred)
    return Placement(
        ops=ops,
        weights=weights,
        specs=specs,
        produced=frozenset(n.name for n in carriers | moved),
        groups={name: groups.find(name) for name in specs},
        fixed=fixed,
        absorbed=frozenset(n.name for n in absorbed if ops[n.name].mode != "float"),
    )


def _join_moved(
    nodes: list[fx.Node], rules: BackendRules, specs: Mapping[str, QuantSpec], moved: set[fx.Node], groups: _Groups
) -> None:
    """One grid for everything that is moved out of one float tensor.

    The TFLite converter quantizes such a tensor once, before the moves; of two grids it keeps one, while the biases of
    the layers that read the other stay as they are.
    """
    for node in nodes:
        if node.name in specs and node not in moved and op_kind(node) in rules.movement:
            for origin in _origins(node, rules):
                if origin.name not in specs:
                    groups.join(node.name, origin.name)


def _origins(node: fx.Node, rules: BackendRules) -> list[fx.Node]:
    """The tensors whose values `node`, a move, puts out."""
    operands = data_operands(node, weighted=False)
    return [o for t in operands for o in (_origins(t, rules) if op_kind(t) in rules.movement else [t])]


def _shared(
    specs: Mapping[str, QuantSpec], groups: _Groups, fixed: Mapping[str, tuple[float, int]], centred: set[str]
) -> dict[str, QuantSpec]:
    """One spec per group: the narrowest wish of its members; 8 bits where the runtime dictates the grid."""
    narrowest: dict[str, QuantSpec] = {}
    for name, spec in specs.items():
        root = groups.find(name)
        narrowest[root] = _narrower(narrowest.get(root), spec)
    for root in narrowest:
        if root in fixed:
            narrowest[root] = replace(narrowest[root], bits=DICTATED_BITS)
        elif root in centred:
            narrowest[root] = replace(narrowest[root], symmetric=True)
    return {name: narrowest[groups.find(name)] for name in specs}


def _source(tensor: fx.Node, rules: BackendRules) -> tuple[fx.Node, list[fx.Node]]:
    """Where the grid of an operand stands, and the moves between there and the operand.

    Without outputs on grids that is before the moves that only this operand needs: rounding a value before or after
    it is moved is the same, and the moves then carry a quarter of the bytes.
    """
    steps: list[fx.Node] = []
    while rules.inputs_only and op_kind(tensor) in rules.movement | rules.early and bounds_of(tensor) is None:
        operands = data_operands(tensor, weighted=False)
        alone = len(tensor.users) == 1 and len(operands[0].users) == 1
        if len(operands) != 1 or not (alone or op_kind(tensor) in rules.early):
            break
        steps.append(tensor)
        tensor = operands[0]
    return tensor, steps


def _from_zero(tensor: fx.Node) -> bool:
    """Whether no value of `tensor` is negative, and its grid therefore begins at 0."""
    bounds = bounds_of(tensor)
    return op_kind(tensor) in ("softmax", "sigmoid", "relu") or (bounds is not None and bounds.low == 0)


def _narrower(first: QuantSpec | None, second: QuantSpec) -> QuantSpec:
    """Of two wishes for one tensor the one with fewer bits; the first when they agree."""
    return second if first is None or second.bits < first.bits else first


def data_operands(node: fx.Node, weighted: bool) -> list[fx.Node]:
    """Floating-point tensors that `node` reads; of a weighted operation only its input, not weight and bias."""
    operands = [n for n in node.all_input_nodes if is_floating(n)]
    if weighted and op_kind(node) == TABLE:
        return []
    return operands[:1] if weighted else operands


def is_floating(node: fx.Node) -> bool:
    """Whether `node` produces a floating-point tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def weight_of(node: fx.Node) -> str | None:
    """Attribute path of the constant weight of a linear, convolution or table node, or None."""
    position = weight_position(node)
    operand = node.args[position] if len(node.args) > position else node.kwargs.get("weight")
    return str(operand.target) if isinstance(operand, fx.Node) and operand.op == "get_attr" else None


def weight_position(node: fx.Node) -> int:
    """Where the weight stands among the arguments of `node`: first in a table, second in a layer."""
    return 0 if op_kind(node) == TABLE else 1


def _fused(nodes: list[fx.Node], rules: BackendRules) -> dict[fx.Node, fx.Node]:
    """Operation -> the activation that its kernel absorbs."""
    result = {}
    absorbing = rules.absorbing | rules.weighted.keys()
    for node in nodes:
        users = list(node.users)
        if op_kind(node) in absorbing and len(users) == 1 and op_kind(users[0]) in rules.fused:
            result[node] = users[0]
    return result


def _modes(
    nodes: list[fx.Node], config: QuantConfig, rules: BackendRules, fused: Mapping[fx.Node, fx.Node]
) -> tuple[dict[str, OpPlan], dict[str, str]]:
    """Mode of each computing operation, and the weights that get a grid."""
    ops: dict[str, OpPlan] = {}
    weights: dict[str, str] = {}
    owner_of = {activation: owner for owner, activation in fused.items()}
    for node in nodes:
        kind = op_kind(node)
        if kind in rules.movement or kind == "getitem":
            continue
        if node in owner_of:
            owner = ops[owner_of[node].name]
            ops[node.name] = OpPlan(node.name, kind, owner.mode, owner.reason)
            continue
        mode, reason = _mode(node, kind, config, rules)
        ops[node.name] = OpPlan(node.name, kind, mode, reason)
        if mode != "float" and kind in rules.weighted:
            weights[node.name] = weight_of(node) or ""
    return ops, weights


def _mode(node: fx.Node, kind: str, config: QuantConfig, rules: BackendRules) -> tuple[Mode, str]:
    """Mode of one operation and, where it is float, why."""
    wish = config.resolve(node.name, kind)
    mode = wish.mode
    if mode == "float":
        return "float", wish.reason
    if not is_floating(node):
        return "float", "not a floating-point result"
    if kind in rules.weighted and weight_of(node) is None:
        return "float", f"its weight is computed, and {rules.name} quantizes constant weights only"
    if mode == "weights" and kind not in rules.weighted:
        return "float", f"{kind} has no weight"
    if mode == "dynamic" and kind not in rules.dynamic:
        return "float", f"{rules.name} cannot quantize the input of {kind} at run time"
    if mode == "static" and kind not in rules.integer:
        return "float", f"{rules.name} has no integer kernel for {kind}"
    return mode, ""


def _movement(nodes: list[fx.Node], rules: BackendRules, static: set[fx.Node], carriers: set[fx.Node]) -> set[fx.Node]:
    """Movement nodes in the integer domain: fed by integers only, and read (at some distance) by an integer kernel."""
    fed: set[fx.Node] = set()
    for node in nodes:
        operands = data_operands(node, weighted=False)
        if op_kind(node) in rules.movement and operands and all(o in carriers or o in fed for o in operands):
            fed.add(node)
    kept: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in fed and any(user in static or user in kept for user in node.users):
            kept.add(node)
    return kept
