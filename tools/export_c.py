r"""Write a model as a C99 project for a microcontroller: integers only, its outputs those of the numpy interpreter.

    python tools/export_c.py vit_nano --calib DATA_FOLDER/cifar10/train.npz --out out/vit_nano-c
    python tools/export_c.py vit_nano --calib DATA_FOLDER/cifar10/train.npz --out out/vit_nano-c \
        --data DATA_FOLDER/cifar10/test.npz --core cortex-m4 cortex-m55
    make -C out/vit_nano-c test

Prints one JSON object: sizes, fidelity to float on images held out of `--calib`, top-1 of both with `--data`, and with
`--core` the instructions of an emulated core (instructions, not cycles). Nothing is written when a layer has no integer
kernel or could overflow: the error names it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.data import open_images, split
from edgeq.devices.cortex_m import MACHINES, run_emulated
from edgeq.errors import EdgeqError
from edgeq.exporters.c.project import CProject, write_project
from edgeq.firmware import integer_network
from edgeq.graph.intgraph.graph import IntGraph
from edgeq.graph.intgraph.interpret import dequantize_output, interpret, quantize_input
from edgeq.metrics import sqnr_db, summarize
from edgeq.models import load_model
from edgeq.models.base import ModelAdapter, parse_model
from edgeq.recipe import recipe_for

VECTORS = 3  # golden vectors in the self test

Sample = tuple[torch.Tensor, ...]


def run(graph: IntGraph, sample: Sample) -> list[NDArray[np.float32]]:
    """Reals of the integer network for a float input."""
    codes = interpret(graph, codes_of(graph, sample))
    return [dequantize_output(graph, port, c) for port, c in zip(graph.outputs, codes, strict=True)]


def codes_of(graph: IntGraph, sample: Sample) -> list[NDArray[Any]]:
    """Codes of a float input."""
    return [quantize_input(graph, port, x.numpy()) for port, x in zip(graph.inputs, sample, strict=True)]


def fidelity(adapter: ModelAdapter, graph: IntGraph, samples: Sequence[Sample]) -> dict[str, float]:
    """SQNR in dB of the worst output, over samples."""
    values = []
    for sample in samples:
        with torch.no_grad():
            exact = [t.numpy() for t in adapter.loaded.graph(*sample)]
        values.append(min(sqnr_db(a, b) for a, b in zip(exact, run(graph, sample), strict=True)))
    found = summarize(values)
    return {"median": round(found.median, 2), "worst": round(found.worst, 2), "samples": found.n}


def accuracy(adapter: ModelAdapter, graph: IntGraph, path: Path, limit: int) -> dict[str, float]:
    """Top-1 in % of the float and of the integer network."""
    source = open_images(path, role="evaluation")
    hits, count = [0, 0], min(limit, len(source))
    for index in range(count):
        sample = tuple(torch.from_numpy(a) for a in adapter.inputs(source.read(index)))
        with torch.no_grad():
            exact = adapter.loaded.graph(*sample)[0].numpy()
        for side, logits in enumerate((exact, run(graph, sample)[0])):
            hits[side] += int(np.argmax(logits) == source.items[index].label)
    return {"float": round(100 * hits[0] / count, 2), "integer": round(100 * hits[1] / count, 2), "n": count}


def emulate(folder: Path, project: CProject, cores: Sequence[str]) -> dict[str, dict[str, int]]:
    """Instructions of one inference by core."""
    found = {core: run_emulated(folder, project.prefix, core) for core in cores}
    return {core: {"instructions": r.total, "codes_that_differ": r.different} for core, r in found.items()}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line asks for."""
    adapter = load_model(parse_model(options.model, options.family, options.weights))
    source = open_images(options.calib, role="calibration")
    first, second = split(source, options.samples, min(32, options.samples), 0)

    def batches() -> Iterator[Sample]:
        for index in first:
            yield tuple(torch.from_numpy(a) for a in adapter.inputs(source.read(index)))

    recipe = recipe_for(options.method, options.rounding, options.bits, "integer")
    graph, _ = integer_network(adapter.loaded.graph, adapter.loaded.name, batches, recipe)
    held_out = [tuple(torch.from_numpy(a) for a in adapter.inputs(source.read(i))) for i in second]
    vectors = [codes_of(graph, sample) for sample in islice(held_out, VECTORS)]
    project = write_project(graph, options.out, vectors)
    return {
        "project": str(options.out),
        "operations": len(graph.ops),
        "flash_bytes": sum(project.flash),
        "arena_bytes": project.arena.bytes,
        "arena_bound_bytes": project.arena.bound,
        "sqnr_db": fidelity(adapter, graph, held_out),
        "top1": accuracy(adapter, graph, options.data, options.limit) if options.data else None,
        "cores": emulate(options.out, project, options.core),
    }


def main() -> int:
    """Read the command line, export, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for `edgeq export`")
    parser.add_argument("--family", help="of a model file")
    parser.add_argument("--weights", help="checkpoint")
    parser.add_argument("--calib", type=Path, required=True, help="images to calibrate with")
    parser.add_argument("--samples", type=int, default=32, help="of them")
    parser.add_argument("--data", type=Path, help="labelled images: top-1")
    parser.add_argument("--limit", type=int, default=1000, help="labelled images at most")
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--method", default="minmax")
    parser.add_argument("--rounding", default="auto")
    parser.add_argument("--core", nargs="*", default=[], choices=list(MACHINES), help="count instructions in QEMU")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    try:
        print(json.dumps(export(parser.parse_args()), indent=1))
    except EdgeqError as error:
        print(f"{error.code}: {error.message}\n  {error.hint or ''}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
