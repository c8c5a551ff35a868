"""Where each buffer lies in the arena: planned by liveness, next to the bound that no plan can go below."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from edgeq.graph.intgraph.graph import (
    Conv,
    Depthwise,
    FullyConnected,
    IntGraph,
    MatMul,
    Op,
    Patches,
    Softmax,
)
from edgeq.graph.intgraph.patches import bands, image_rows, patched, reach

ALIGNMENT = 8
PATCHES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Numbers of patches that are tried."""
REORDERINGS = 400  # of the buffers, tried when the first plan is above the bound


@dataclass(frozen=True)
class Block:
    """A buffer with its life: from the operation that writes it to the last that reads it, both included."""

    name: str
    bytes: int
    first: int
    last: int

    def meets(self, other: Block) -> bool:
        """Whether both are alive at once."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class ArenaPlan:
    """Offsets in the arena.

    Args:
        offsets: By tensor, and by `scratch:` and the position of an operation.
        bytes: Size of the arena.
        bound: Most bytes alive at once; no plan is smaller.
        live: Bytes alive during each operation.
    """

    offsets: Mapping[str, int]
    bytes: int
    bound: int
    live: tuple[int, ...]


def scratch_bytes(op: Op) -> int:
    """Bytes an operation needs while it runs: two rows of 16-bit numbers for products, one for a softmax."""
    if isinstance(op, Conv):
        return 5 * _expanded(op.weights.codes.shape[1], op.weights.bits)
    if isinstance(op, FullyConnected):
        return 4 * _expanded(op.weights.codes.shape[1], op.weights.bits)
    if isinstance(op, MatMul):
        return 4 * _expanded(op.inner, 8)
    if isinstance(op, Depthwise):
        return int(op.weights.codes.size)
    return 2 * op.length if isinstance(op, Softmax) else 0


def padded_inner(inner: int, bits: int) -> int:
    """Length of a row of weights in memory: two 4-bit codes share a byte, eight a word."""
    return -(-inner // 8) * 8 if bits == 4 else inner


def _expanded(inner: int, bits: int) -> int:
    """Codes in a row of 16-bit numbers: kernels read four at a time, and sixteen with 4-bit weights."""
    step = 16 if bits == 4 else 4
    return -(-inner // step) * step


def plan_arena(graph: IntGraph) -> ArenaPlan:
    """Place every buffer of `graph` that is neither constant nor the caller's.

    Buffers are placed from the largest down, each at the lowest free place (Pisarchyk and Lee 2020, arXiv:2001.03288,
    "greedy by size"); where that is above the bound, two buffers change places in the order as long as it helps.
    """
    blocks = _blocks(graph)
    live = _alive(blocks, len(graph.ops))
    bound = max(live, default=0)
    order = sorted(blocks, key=lambda b: (-b.bytes, b.first))
    best, size = _place(order)
    chance = random.Random(0)
    for _ in range(REORDERINGS if len(order) > 1 else 0):
        if size == bound:
            break
        trial = list(order)
        i, j = chance.sample(range(len(trial)), 2)
        trial.insert(i, trial.pop(j))
        offsets, reached = _place(trial)
        if reached <= size:
            order, best, size = trial, offsets, reached
    return ArenaPlan(best, size, bound, live)


def arena_bound(graph: IntGraph) -> int:
    """Most bytes alive at once: what `plan_arena` reaches or comes near to, at a fraction of the time."""
    return max(_alive(_blocks(graph), len(graph.ops)), default=0)


def in_patches(graph: IntGraph, count: int) -> IntGraph:
    """The network with as many of its first operations in `count` patches as make its arena smallest."""
    whole = patched(graph, Patches())
    tried = [whole, *(patched(whole, Patches(ops, count)) for ops in range(1, reach(whole) + 1))]
    return min(tried, key=arena_bound)


def fitted(graph: IntGraph, arena: int) -> IntGraph:
    """The network in as few patches as make its arena fit; in those that make it smallest where none do.

    Args:
        graph: The network.
        arena: Bytes that there are for it.
    """
    tried = [patched(graph, Patches())]
    for count in PATCHES:
        if plan_arena(tried[-1]).bytes <= arena:
            return tried[-1]
        tried.append(in_patches(graph, count))
    return min(tried, key=arena_bound)


def _alive(blocks: Sequence[Block], count: int) -> tuple[int, ...]:
    """Bytes alive during each of `count` operations."""
    change = [0] * (count + 1)
    for block in blocks:
        change[block.first] += block.bytes
        change[block.last + 1] -= block.bytes
    return tuple(accumulate(change[:-1]))


def _blocks(graph: IntGraph) -> list[Block]:
    """Every buffer with its life; in patches, what one leaves to the next lives through all of them."""
    outside = {port.tensor for port in (*graph.inputs, *graph.outputs)} | set(graph.constants)
    last: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        last.update(dict.fromkeys(op.inputs, index))
    together = graph.patches.ops
    found = bands(graph, graph.patches)
    blocks = []
    for index, op in enumerate(graph.ops):
        end = last.get(op.output, index)
        if op.output not in outside:
            tensor, begin = graph.tensors[op.output], index
            size = tensor.bytes
            if index < together:
                size = size // image_rows(tensor) * found.rows[op.output]
                begin, end = (0, max(end, together - 1)) if found.stays(op.output) else (index, end)
            blocks.append(Block(op.output, _aligned(size), begin, end))
        if scratch_bytes(op):
            blocks.append(Block(f"scratch:{index}", _aligned(scratch_bytes(op)), index, index))
    return blocks


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _place(order: Sequence[Block]) -> tuple[dict[str, int], int]:
    """Each block in turn at the lowest place that is free all its life."""
    placed: list[tuple[int, Block]] = []
    for block in order:
        start = 0
        for offset, other in sorted(((o, b) for o, b in placed if b.meets(block)), key=lambda entry: entry[0]):
            if start + block.bytes <= offset:
                break
            start = max(start, offset + other.bytes)
        placed.append((start, block))
    return {b.name: o for o, b in placed}, max((o + b.bytes for o, b in placed), default=0)
