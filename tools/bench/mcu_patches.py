"""RAM and instructions of the shipped networks whose first layers run in patches; writes JSON.

    python tools/bench/mcu_patches.py

Each network is exported once for a bare Cortex-M4, then its program is written with each number of patches and run on
emulated cores on one golden vector. Needs arm-none-eabi-gcc and qemu-system-arm.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from export_quality import RESULTS  # beside this file
from mcu_networks import edgeq

from edgeq.arrays import read_arrays
from edgeq.artifact import Artifact
from edgeq.artifact.files import GOLDEN_INPUTS
from edgeq.devices.cortex_m import run_emulated
from edgeq.exporters.c.memory import memory_of
from edgeq.exporters.c.project import write_project
from edgeq.graph.intgraph.file import load
from edgeq.graph.intgraph.graph import IntGraph
from edgeq.graph.intgraph.interpret import quantize_input
from edgeq.graph.intgraph.memory import in_patches

RESULT = RESULTS / "mcu_patches.json"
NETWORKS, COUNTS, CORES = ("cifar_cnn", "depth_nano"), (1, 2, 4, 8, 16), ("cortex-m4", "cortex-m55")


def measured(graph: IntGraph, codes: list[Any]) -> dict[str, Any]:
    """Memory of a network, and what running it takes."""
    memory, instructions, different = memory_of(graph), {}, 0
    for core in CORES:
        with tempfile.TemporaryDirectory() as folder:
            write_project(graph, Path(folder), [codes])
            run = run_emulated(Path(folder), core)
        instructions[core] = run.total
        different += run.outcome.different
    return {
        "layers": graph.patches.ops,
        "ram": memory.ram,
        "arena": memory.arena,
        "moved": memory.patches.moved if memory.patches else 0,
        "instructions": instructions,
        "different": different,
    }


def main() -> None:
    """Measure every network with every number of patches."""
    rows: dict[str, dict[str, Any]] = {}
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            edgeq("export", name, "--device", "cortex-m4", "--out", f"{folder}/out")
            artifact = Artifact.open(Path(folder) / "out")
            graph = load(artifact.model_file)
            golden = read_arrays(artifact.folder / GOLDEN_INPUTS)
        first = [array[0] for _, array in sorted(golden.items())]
        codes = [quantize_input(graph, port, x) for port, x in zip(graph.inputs, first, strict=True)]
        rows[name] = {str(n): measured(in_patches(graph, n) if n > 1 else graph, codes) for n in COUNTS}
        print(name, json.dumps(rows[name], indent=1))
    RESULT.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
