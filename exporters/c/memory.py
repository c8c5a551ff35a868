"""Flash and RAM that a network takes on a microcontroller, known before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeq.exporters.base import Memory
from edgeq.exporters.c.calls import Array, Call, Writer
from edgeq.graph.intgraph.graph import IntGraph
from edgeq.graph.intgraph.memory import ArenaPlan, plan_arena


@dataclass(frozen=True)
class Row:
    """Bytes of one operation.

    Args:
        name: Of the operation.
        kind: Likewise.
        flash: Constants that no operation before it has.
        live: Bytes of the arena alive while it runs.
    """

    name: str
    kind: str
    flash: int
    live: int


def rows_of(arena: ArenaPlan, calls: Sequence[Call]) -> list[Row]:
    """The operations, in order."""
    seen: set[str] = set()
    rows = []
    for index, call in enumerate(calls):
        fresh = [array for array in call.arrays if array.name not in seen]
        seen.update(array.name for array in fresh)
        rows.append(Row(call.op.name, type(call.op).__name__, sum(a.bytes for a in fresh), arena.live[index]))
    return rows


def memory_of(graph: IntGraph) -> Memory:
    """What `graph` takes."""
    arena = plan_arena(graph)
    writer = Writer(graph, arena, "x")
    return summed(graph, arena, rows_of(arena, writer.calls()), writer.constants())


def summed(graph: IntGraph, arena: ArenaPlan, rows: Sequence[Row], constants: Sequence[Array]) -> Memory:
    """The rows in all.

    Args:
        graph: The network.
        arena: Its arena.
        rows: Its operations.
        constants: Its constant tensors.
    """
    ports = sum(graph.tensors[port.tensor].bytes for port in (*graph.inputs, *graph.outputs))
    largest = rows[int(np.argmax([row.flash for row in rows]))]
    widest = rows[int(np.argmax([row.live for row in rows]))]
    return Memory(
        flash=sum(row.flash for row in rows) + sum(array.bytes for array in constants),
        ram=arena.bytes + ports,
        arena=arena.bytes,
        arena_bound=arena.bound,
        largest=(largest.name, largest.flash),
        widest=(widest.name, widest.live),
    )


def report(name: str, memory: Memory, rows: Sequence[Row]) -> str:
    """`memory.txt`: flash and RAM of each layer, before anything is flashed."""
    lines = [
        f"{name}: bytes of constants and of the arena; code and stack are not counted",
        "",
        f"flash, constants  {memory.flash}",
        f"RAM               {memory.ram} (arena, inputs and outputs)",
        f"arena             {memory.arena}",
        f"arena, bound      {memory.arena_bound} (alive at once, in {memory.widest[0]}; no plan is smaller)",
        "",
        "layer operation            flash     alive  name",
    ]
    lines += [f"{i:5d} {row.kind:16s} {row.flash:9d} {row.live:9d}  {row.name}" for i, row in enumerate(rows)]
    return "\n".join([*lines, ""])
