"""Where a graph can be cut in blocks: the places at which a single tensor carries what the next layers read."""

from __future__ import annotations

import operator
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import fx

from edgeq.errors import ModelError

MAX_LAYERS = 4
"""Weighted layers of a block: the four of a transformer block."""


_PASSED = 2 * MAX_LAYERS
"""Weighted layers between a tensor and its last reader from which on it is carried past the blocks between them. The
branches of a block read what is nearer; a feature pyramid, and heads that wait for one another, read what is farther.
"""


@dataclass(frozen=True)
class Block:
    """A part of a graph; nodes by name, in execution order.

    Args:
        sources: Nodes whose values enter: one, and those of far layers that are read here.
        results: Nodes whose values leave: one, and others for far layers or for the outputs of the graph.
        layers: Weighted layers in between.
    """

    sources: tuple[str, ...]
    results: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The node that ends it."""
        return self.results[-1]


@dataclass
class _Segment:
    """What lies between two neighbouring cuts."""

    before: frozenset[fx.Node]
    after: frozenset[fx.Node]
    layers: list[str]
    wide: bool


def blocks_of(graph: fx.GraphModule, layers: frozenset[str], *, max_layers: int = MAX_LAYERS) -> list[Block]:
    """Cut a graph at its residual stream.

    A block ends where the branches of a residual sum have come together, once it has `max_layers` weighted layers; a
    chain of layers without branches (a stem) is a block apart from what follows. Parts without weighted layers belong
    to the block after them. What only far layers read is carried past the blocks between. The last block ends with the
    outputs of the graph.

    Args:
        graph: Graph with one input that is a tensor.
        layers: Names of the weighted layers.
        max_layers: After how many of them a block ends; at least 1.

    Raises:
        ModelError: EQ-M321, there is no input or more than one, or nothing that has a weight.
    """
    segments = _segments(graph, layers)
    blocks: list[Block] = []
    gathered: list[_Segment] = []

    def close() -> None:
        found = tuple(name for s in gathered for name in s.layers)
        blocks.append(_block(graph, gathered[0].before, gathered[-1].after, found))
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
            "no layer of this network has a weight to learn",
            code="EQ-M321",
            hint="leave out --learn-steps and --budget-minutes",
        )
    return blocks


def whole(graph: fx.GraphModule, blocks: Sequence[Block]) -> Block:
    """All blocks as one, from the input to the outputs of the graph.

    Args:
        graph: The graph.
        blocks: Its blocks.
    """
    layers = tuple(name for block in blocks for name in block.layers)
    return Block(blocks[0].sources, tuple(n.name for n in _outputs(graph)), layers)


def _outputs(graph: fx.GraphModule) -> tuple[fx.Node, ...]:
    """The nodes that the graph returns, each once."""
    end = next(n for n in graph.graph.nodes if n.op == "output")
    return tuple(dict.fromkeys(end.all_input_nodes))


def _block(
    graph: fx.GraphModule, before: frozenset[fx.Node], after: frozenset[fx.Node], layers: tuple[str, ...]
) -> Block:
    """The block between two cuts."""
    order = {n: i for i, n in enumerate(graph.graph.nodes)}
    results = sorted(after - before, key=order.__getitem__)
    needed = _needed(results, before)
    read = {source for n in needed for source in n.all_input_nodes if source in before}
    return Block(tuple(n.name for n in sorted(read, key=order.__getitem__)), tuple(n.name for n in results), layers)


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
    count = list(accumulate(int(n.name in layers) for n in nodes))
    carried = {n for n in varying if last[n] >= 0 and count[last[n] - 1] - count[place[n]] > _PASSED}
    segments: list[_Segment] = []
    live: frozenset[fx.Node] = frozenset()
    cut: frozenset[fx.Node] = frozenset()
    wide, found = False, list[str]()
    for i, node in enumerate(nodes):
        if node.op != "output":
            live = frozenset(n for n in (*live, node) if n in varying and last[n] > i)
            if node.name in layers:
                found.append(node.name)
            near = len(live - carried)
            if near > 1 or not live:
                wide = wide or near > 1
                continue
        if cut and live != cut:
            segments.append(_Segment(cut, live, found, wide))
            wide, found = False, []
        cut = live
    return segments


def _varying(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on the input."""
    varying: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(n in varying for n in node.all_input_nodes):
            varying.add(node)
    return varying


def extract(graph: fx.GraphModule, sources: Sequence[str], results: Sequence[str]) -> fx.GraphModule:
    """The part of a graph from the values of `sources` to those of `results`, as a module.

    It takes as many tensors as there are sources, and returns a tensor for one result, a tuple for several. Its
    constants and submodules are those of `graph`, not copies.

    Args:
        graph: The graph.
        sources: Names of the nodes whose values enter.
        results: Names of the nodes whose values leave.

    Raises:
        ModelError: EQ-M321, the results need more than the sources.
    """
    part = fx.Graph()
    nodes = {n.name: n for n in graph.graph.nodes}
    copies = {nodes[name]: part.placeholder(f"x{i}") for i, name in enumerate(sources)}
    ends = [nodes[name] for name in results]
    needed = _needed(ends, copies)
    for node in graph.graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, lambda n: copies[n])
    outputs = tuple(copies[n] for n in ends)
    part.output(outputs[0] if len(outputs) == 1 else outputs)
    part.lint()
    return fx.GraphModule(graph, part)


def joined(part: fx.GraphModule, units: Sequence[float]) -> fx.GraphModule:
    """A part whose several results are one tensor `(batch, elements)`.

    Args:
        part: What `extract` gives for several results; not changed.
        units: What each result is divided by.
    """
    graph = fx.Graph()
    results = graph.graph_copy(part.graph, {})
    assert isinstance(results, tuple)
    flat = [graph.call_function(torch.flatten, (node, 1)) for node in results]
    parts = [graph.call_function(operator.truediv, (n, unit)) for n, unit in zip(flat, units, strict=True)]
    graph.output(graph.call_function(torch.cat, (parts, 1)))
    graph.lint()
    return fx.GraphModule(part, graph)


def _needed(results: Sequence[fx.Node], sources: Container[fx.Node]) -> set[fx.Node]:
    """What must be computed for `results`, given `sources`."""
    needed: set[fx.Node] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node in sources or node in needed:
            continue
        if node.op == "placeholder":
            raise ModelError(
                f"{results[-1].name} also needs {node.name}", code="EQ-M321", hint="cut where all that it needs passes"
            )
        needed.add(node)
        waiting.extend(node.all_input_nodes)
    return needed
