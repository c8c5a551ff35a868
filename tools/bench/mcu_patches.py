"""RAM and instructions of the shipped networks whose first layers run in patches; writes JSON.

    python tools/bench/mcu_patches.py [--data DATA_FOLDER [--bits-only]]

Each network is exported once for a bare Cortex-M4, then its program is written with each number of patches and run on
emulated cores on one golden vector. Needs arm-none-eabi-gcc and qemu-system-arm.

With `--data`, bits that follow the values of a patch are simulated, as QuantMCU has them: in the 8-bit tensors of 8
patches, the patches of the narrowest range on 8 photos of `cifar10/test.npz`, none, half or all of each
tensor's, are rounded to 16 steps of that range; 24 more photos give the fidelity to float. RAM is what buffers of half
as many bytes would leave, which only `all` allows: a buffer has the bytes of its widest patch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_quality import RESULTS  # beside this file
from mcu_networks import edgeq

from edgeq.arrays import read_arrays
from edgeq.artifact import Artifact
from edgeq.artifact.files import GOLDEN_INPUTS
from edgeq.data import open_images
from edgeq.devices.cortex_m import run_emulated
from edgeq.exporters.c.memory import memory_of
from edgeq.exporters.c.project import write_project
from edgeq.graph.intgraph.file import load
from edgeq.graph.intgraph.graph import IntGraph, Op
from edgeq.graph.intgraph.interpret import Codes, dequantize_output, quantize_input, trace
from edgeq.graph.intgraph.memory import in_patches
from edgeq.graph.intgraph.patches import image_rows
from edgeq.metrics import sqnr_db
from edgeq.models import load_model
from edgeq.models.base import parse_model

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


Ranges = Mapping[tuple[str, int], tuple[int, int]]
"""Lowest and highest code by tensor and patch."""


def run_in_bits(graph: IntGraph, codes: Sequence[Any], narrow: Ranges, found: dict[tuple[str, int], list[int]]) -> Any:
    """The first output in reals; patches in `narrow` hold 16 steps, the codes of all patches go into `found`."""
    patched = {op.output for op in graph.ops[: graph.patches.ops]}

    def narrowed(op: Op, _: Mapping[str, Codes], result: Codes) -> Codes:
        tensor = graph.tensors[op.output]
        if op.output in patched and not tensor.wide:
            for patch, band in enumerate(np.array_split(result.reshape(image_rows(tensor), -1), graph.patches.count)):
                key = op.output, patch
                found.setdefault(key, []).extend((int(band.min()), int(band.max())))
                if key in narrow:
                    low, high = narrow[key]
                    step = max(high - low, 15) / 15
                    band[:] = np.rint(low + np.clip(np.rint((band - low) / step), 0, 15) * step)  # a view of the result
        return result

    port = graph.outputs[0]
    return dequantize_output(graph, port, trace(graph, codes, narrowed)[port.tensor])


def bits(name: str, graph: IntGraph, data: Path) -> dict[str, Any]:
    """Fidelity and RAM with 4 bits in none, half and all of the patches of each 8-bit tensor."""
    graph = in_patches(graph, 8)
    adapter = load_model(parse_model(name, None, None))
    images = open_images(data / "cifar10" / "test.npz", role="evaluation")
    samples = [adapter.inputs(images.read(index)) for index in range(32)]
    codes = [[quantize_input(graph, p, x) for p, x in zip(graph.inputs, sample, strict=True)] for sample in samples]
    found: dict[tuple[str, int], list[int]] = {}
    for sample in codes[:8]:
        run_in_bits(graph, sample, {}, found)
    ranges = {key: (min(ends), max(ends)) for key, ends in found.items()}
    tensors = {tensor for tensor, _ in ranges}
    ordered = {t: sorted((k for k in ranges if k[0] == t), key=lambda k: ranges[k][1] - ranges[k][0]) for t in tensors}
    halved = {
        n: replace(t, shape=(*t.shape[:-1], -(-t.shape[-1] // 2))) if n in tensors else t
        for n, t in graph.tensors.items()
    }
    ram = {0: memory_of(graph).ram, 8: memory_of(replace(graph, tensors=halved)).ram}
    rows = {}
    with torch.no_grad():
        exact = [adapter.loaded.graph(*(torch.from_numpy(a) for a in sample))[0].numpy() for sample in samples[8:]]
    for count in (0, 4, 8):
        narrow = {key: ranges[key] for keys in ordered.values() for key in keys[:count]}
        found_db = [sqnr_db(a, run_in_bits(graph, c, narrow, {})) for a, c in zip(exact, codes[8:], strict=True)]
        rows[str(count)] = {
            "sqnr_db": {"median": round(float(np.median(found_db)), 2), "worst": round(min(found_db), 2)},
            "ram": ram.get(count, ram[0]),
        }
    return {"layers": graph.patches.ops, "tensors": len(tensors), "n": len(exact), "patches of 8 in 4 bits": rows}


def main() -> None:
    """Measure every network with every number of patches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="simulate bits that follow the values, too")
    parser.add_argument("--bits-only", action="store_true", help="keep what was measured of memory and instructions")
    args = parser.parse_args()
    written = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            edgeq("export", name, "--device", "cortex-m4", "--out", f"{folder}/out")
            artifact = Artifact.open(Path(folder) / "out")
            graph = load(artifact.model_file)
            golden = read_arrays(artifact.folder / GOLDEN_INPUTS)
        if not args.bits_only:
            first = [array[0] for _, array in sorted(golden.items())]
            codes = [quantize_input(graph, port, x) for port, x in zip(graph.inputs, first, strict=True)]
            rows = {str(n): measured(in_patches(graph, n) if n > 1 else graph, codes) for n in COUNTS}
            written.setdefault("rows", {})[name] = rows
        if args.data is not None:
            written.setdefault("bits", {})[name] = bits(name, graph, args.data)
        print(name, json.dumps({part: rows.get(name) for part, rows in written.items()}, indent=1), flush=True)
        RESULT.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
