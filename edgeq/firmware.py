"""The C project of a network of integers: written, compared with the interpreter, its instructions counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.devices.base import Target
from edgeq.devices.cortex_m import EmulatedRun, machine_named, missing_tools, run_emulated
from edgeq.devices.host import missing_compiler, run_on_host
from edgeq.devices.program import Outcome
from edgeq.errors import InternalError
from edgeq.exporters.base import Memory
from edgeq.exporters.c.project import write_project
from edgeq.graph.intgraph.file import load, save
from edgeq.graph.intgraph.graph import IntGraph
from edgeq.graph.intgraph.interpret import quantize_input
from edgeq.graph.intgraph.memory import fitted, in_patches

FOLDER = "c"
"""Of the C project, in a bundle."""

CODE, STACK = 24 * 1024, 4 * 1024
"""Bytes kept beside the constants and the arena; measured: 8 to 22 KiB of code, below 1 KiB of stack."""


def misfits(target: Target, memory: Memory | None) -> tuple[str, ...]:
    """Why a program cannot run on a chip: what it takes, by how much that is too much, and the layer that decides.

    Args:
        target: The chip; where its memory varies, nothing is checked.
        memory: What the program takes; None where it is no program for a microcontroller.
    """
    if memory is None:
        return ()
    wanted = (
        ("flash", target.flash_kb, memory.flash, CODE, "constants", memory.largest),
        ("RAM", target.ram_kb, memory.ram, STACK, "arena, inputs and outputs", memory.widest),
    )
    return tuple(
        f"{held} of {used / 1024:.0f} KiB and {kept // 1024} KiB for {'code' if kept == CODE else 'the stack'} do not "
        f"fit {target.name}'s {limit} KiB of {kind}: {(used + kept) / 1024 - limit:.0f} KiB too much; most are in "
        f"{deciding[0]} ({deciding[1] / 1024:.0f} KiB)"
        for kind, limit, used, kept, held, deciding in wanted
        if limit and used + kept > 1024 * limit
    )


def run_in_patches(network: Path, target: Target, wish: str) -> bool:
    """Rewrite a network so that its first operations run in patches, where that is wished or needed.

    Args:
        network: The `.intgraph` file.
        target: The chip; where its memory varies, nothing is needed.
        wish: `auto` where RAM does not suffice otherwise, `none`, or how many patches.

    Returns:
        Whether the file has changed.
    """
    if wish == "none" or (wish == "auto" and not target.ram_kb):
        return False
    graph = load(network)
    if wish == "auto":
        ports = sum(graph.tensors[port.tensor].bytes for port in (*graph.inputs, *graph.outputs))
        made = fitted(graph, 1024 * target.ram_kb - STACK - ports)
    else:
        made = in_patches(graph, int(wish))
    if made.patches == graph.patches:
        return False
    save(made, network)
    return True


def write_firmware(folder: Path, name: str, network: Path, inputs: Sequence[Sequence[NDArray[np.float32]]]) -> None:
    """Write the C project into `folder / FOLDER`.

    Args:
        folder: The bundle.
        name: Of the model; prefix of the C names.
        network: The `.intgraph` file.
        inputs: Golden inputs, reals.
    """
    graph = load(network)
    vectors = [[quantize_input(graph, p, x) for p, x in zip(graph.inputs, arrays, strict=True)] for arrays in inputs]
    write_project(graph, folder / FOLDER, vectors, name)


def measured(folder: Path, target: Target) -> dict[str, Any]:
    """What running the C project of a bundle gives, for its evidence; reasons where a tool is missing.

    Args:
        folder: The bundle.
        target: Names the emulated machine.

    Raises:
        InternalError: EQ-Z601, generated C differs from the interpreter.
        DeviceError: It does not build or run.
    """
    project, graph = folder / FOLDER, load(next(folder.glob("*.intgraph")))
    found: dict[str, Any] = {"host": None, "emulated": None, "not_measured": []}
    if lacking := missing_compiler():
        found["not_measured"].append(f"generated C on this machine: {lacking}")
    else:
        host = run_on_host(project)
        found["host"] = host.to_dict()
        _require_equal(host.outcome, "this machine")
    if not target.machine:
        found["not_measured"].append(f"instructions: QEMU has no machine like {target.name}")
    elif lacking := missing_tools():
        found["not_measured"].append(f"instructions: {lacking}")
    else:
        run = run_emulated(project, machine_named(target.machine))
        _require_equal(run.outcome, target.machine)
        found["emulated"] = emulation(run, graph)
    return found


def emulation(run: EmulatedRun, graph: IntGraph) -> dict[str, Any]:
    """An emulated run as JSON: instructions of each layer and share of each kind of operation."""
    kinds: dict[str, int] = {}
    for op, count in zip(graph.ops, run.layers, strict=True):
        kinds[type(op).__name__] = kinds.get(type(op).__name__, 0) + count
    return {
        "machine": run.machine,
        "unit": "instructions",
        "total": run.total,
        "vectors": run.outcome.vectors,
        "different": run.outcome.different,
        "code_bytes": run.code,
        "stack_bytes": run.stack,
        "share": {kind: round(n / run.total, 4) for kind, n in sorted(kinds.items(), key=lambda k: -k[1])},
        "layers": [
            {"name": op.name, "op": type(op).__name__, "value": count}
            for op, count in zip(graph.ops, run.layers, strict=True)
        ],
    }


def _require_equal(outcome: Outcome, where: str) -> None:
    if outcome.different:
        message = f"the generated C differs from the interpreter on {where}, in {outcome.different} codes"
        hint = "report the model with `edgeq doctor`; the artifact cannot be trusted"
        raise InternalError(message, code="EQ-Z601", place=where, hint=hint)
