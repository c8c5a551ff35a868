"""Where a graph can be cut in blocks: the places at which a single tensor carries everything that comes later."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from edgeq.errors import ModelError

MAX_LAYERS = 4
"""Weighted layers of a block: the four of a transformer block."""


@dataclass(frozen=True)
class Block:
    """A part of a graph with one input and one output; nodes by name.

    Args:
        source: Node whose value enters, a placeholder for the first block.
        result: Node whose value leaves.
        layers: Weighted layers in between, in execution order.
    """

    source: str
    result: str
    layers: tuple[str, ...]


@dataclass
class _Segment:
    """What lies between two neighbouring cuts."""

    source: fx.Node
    result: fx.Node
    layers: list[str]
    wide: bool


def blocks_of(graph: fx.GraphModule, layers: frozenset[str], *, max_layers: int = MAX_LAYERS) -> list[Block]:
    """Cut a graph at its residual stream.

    A block ends where the branches of a residual sum have come together, once it has `max_layers` weighted layers; a
    chain of layers without branches (a stem) is a block apart from what follows. Parts without weighted layers belong
    to the block after them. What lies behind the last cut, such as several heads, is in no block.

    Args:
        graph: Graph with one input that is a tensor.
        layers: Names of the weighted layers.
        max_layers: After how many of them a block ends; at least 1.

    Raises:
        ModelError: There is no input or more than one, or no place to cut.
    """
    segments = _segments(graph, layers)
    blocks: list[Block] = []
    gathered: list[_Segment] = []

    def close() -> None:
        found = tuple(name for s in gathered for name in s.layers)
        blocks.append(Block(gathered[0].source.name, gathered[-1].result.name, found))
        gathered.clear()

    for segment in segments:
        weighted = [s for s in gathered if s.layers]
        if weighted and segment.layers and weighted[-1].wide != segment.wide:
            close()
        gathered.append(segment)
        if sum(len(s.layers) for s in gathered) >= max_layers:
            close()
    if any(s.layers for s in gathered):
        close()
    if not blocks:
        raise ModelError(
            "there is no place where one tensor carries the whole network: it cannot be cut in blocks",
            code="EQ-M321",
            hint="round layer by layer instead: --rounding gptq",
        )
    return blocks


def _segments(graph: fx.GraphModule, layers: frozenset[str]) -> list[_Segment]:
    """The parts between all cuts, in order."""
    nodes = [n for n in graph.graph.nodes if n.op != "get_attr"]
    inputs = [n for n in nodes if n.op == "placeholder"]
    if len(inputs) != 1:
        raise ModelError(
            f"a graph with {len(inputs)} inputs cannot be cut in blocks",
            code="EQ-M321",
            hint="round layer by layer instead: --rounding gptq",
        )
    varying = _varying(nodes)
    place = {n: i for i, n in enumerate(nodes)}
    last = {n: max((place[u] for u in n.users if u in place), default=-1) for n in nodes}
    segments: list[_Segment] = []
    live: set[fx.Node] = set()
    cut: fx.Node | None = None
    wide, found = False, list[str]()
    for i, node in enumerate(nodes):
        if node.op == "output":
            break
        live = {n for n in (*live, node) if n in varying and last[n] > i}
        if node.name in layers:
            found.append(node.name)
        if len(live) != 1:
            wide = wide or len(live) > 1
            continue
        only = next(iter(live))
        if cut is not None and only is not cut:
            segments.append(_Segment(cut, only, found, wide))
            wide, found = False, []
        cut = only
    return segments


def _varying(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on the input."""
    varying: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(n in varying for n in node.all_input_nodes):
            varying.add(node)
    return varying


def extract(graph: fx.GraphModule, source: str, result: str) -> fx.GraphModule:
    """The part of a graph from the value of `source` to the value of `result`, as a module of one input.

    Its constants and submodules are those of `graph`, not copies.

    Args:
        graph: The graph.
        source: Name of the node whose value enters.
        result: Name of the node whose value leaves.
    """
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    nodes = {n.name: n for n in graph.graph.nodes}
    copies[nodes[source]] = part.placeholder("x")
    needed = _needed(nodes[result], nodes[source])
    for node in graph.graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, lambda n: copies[n])
    part.output(copies[nodes[result]])
    part.lint()
    return fx.GraphModule(graph, part)


def _needed(result: fx.Node, source: fx.Node) -> set[fx.Node]:
    """What must be computed for `result`, given `source`."""
    needed: set[fx.Node] = set()
    waiting = [result]
    while waiting:
        node = waiting.pop()
        if node is source or node in needed:
            continue
        if node.op == "placeholder":
            raise ModelError(
                f"{result.name} needs more than {source.name}", code="EQ-M321", hint="cut where one tensor passes"
            )
        needed.add(node)
        waiting.extend(node.all_input_nodes)
    return needed
