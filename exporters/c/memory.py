"""Flash and RAM that a network takes on a microcontroller, known before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeq.exporters.base import Memory, Patched
from edgeq.exporters.c.calls import Array, Call, Writer
from edgeq.exporters.c.patches import calls_of
from edgeq.graph.intgraph.graph import IntGraph, Patches
from edgeq.graph.intgraph.memory import ArenaPlan, plan_arena
from edgeq.graph.intgraph.patches import moved_bytes, patched


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
    return summed(graph, arena, rows_of(arena, calls_of(writer)), writer.constants())


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
        patches=_patched(graph, ports),
    )


def _patched(graph: IntGraph, ports: int) -> Patched | None:
    if not graph.patches.ops:
        return None
    whole = plan_arena(patched(graph, Patches())).bytes + ports
    return Patched(graph.patches.count, graph.patches.ops, whole, moved_bytes(graph))


def _patch_lines(memory: Memory) -> list[str]:
    found = memory.patches
    if found is None:
        return []
    layers = f"layers 0 to {found.ops - 1} run in {found.count} bands of rows"
    return [f"patches           {layers}; RAM without them {found.ram_whole}, {found.moved} bytes moved a run"]


def report(name: str, memory: Memory, rows: Sequence[Row]) -> str:
    """`memory.txt`: flash and RAM of each layer, before anything is flashed."""
    lines = [
        f"{name}: bytes of constants and of the arena; code and stack are not counted",
        "",
        f"flash, constants  {memory.flash}",
        f"RAM               {memory.ram} (arena, inputs and outputs)",
        f"arena             {memory.arena}",
        f"arena, bound      {memory.arena_bound} (alive at once, in {memory.widest[0]}; no plan is smaller)",
        *_patch_lines(memory),
        "",
        "layer operation            flash     alive  name",
    ]
    lines += [f"{i:5d} {row.kind:16s} {row.flash:9d} {row.live:9d}  {row.name}" for i, row in enumerate(rows)]
    return "\n".join([*lines, ""])
