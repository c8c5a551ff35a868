"""Where each buffer lies in the arena: planned by liveness, next to the bound that no plan can go below."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeq.graph.intgraph.graph import (
    Conv,
    Depthwise,
    FullyConnected,
    IntGraph,
    MatMul,
    Op,
    Softmax,
)

ALIGNMENT = 8
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
    live = tuple(sum(b.bytes for b in blocks if b.first <= i <= b.last) for i in range(len(graph.ops)))
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


def _blocks(graph: IntGraph) -> list[Block]:
    outside = {port.tensor for port in (*graph.inputs, *graph.outputs)} | set(graph.constants)
    last: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        last.update(dict.fromkeys(op.inputs, index))
    blocks = []
    for index, op in enumerate(graph.ops):
        if op.output not in outside:
            size = _aligned(graph.tensors[op.output].bytes)
            blocks.append(Block(op.output, size, index, last.get(op.output, index)))
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
