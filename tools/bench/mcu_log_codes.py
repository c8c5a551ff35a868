"""Attention probabilities in 4-bit powers of two on microcontrollers: fidelity, RAM, instructions; writes JSON.

    python tools/bench/mcu_log_codes.py --data DATA_FOLDER

A code k stands for 2^-k, 15 for zero, so that P.V is a sum of shifted values; kernels decode codes to 16-bit powers and
multiply (`mcu_log_codes.c`, same integers). Fidelity: the integers of the shipped ViTs against the float network, on
16 photos of `cifar10/test.npz`; everything but P is what an export makes, and P is coded from exact probabilities, so
that no kernel could do better. RAM: the arena with half as many bytes for P. Instructions of one product 64x64x64, a
division for each row's sum not counted. Needs arm-none-eabi-gcc and qemu-system-arm.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mcu_kernels  # beside this file
import numpy as np
import torch
from export_quality import RESULTS
from mcu_networks import edgeq
from numpy.typing import NDArray

from edgeq.artifact import Artifact
from edgeq.data import open_images
from edgeq.devices.cortex_m import run_emulated
from edgeq.exporters.c.project import write_project
from edgeq.graph.intgraph.file import load
from edgeq.graph.intgraph.graph import IntGraph, MatMul, Op, Softmax
from edgeq.graph.intgraph.interpret import Codes, dequantize_output, quantize_input, trace
from edgeq.graph.intgraph.memory import plan_arena
from edgeq.metrics import sqnr_db
from edgeq.models import load_model
from edgeq.models.base import parse_model

RESULT = RESULTS / "mcu_log_codes.json"
NETWORKS, IMAGES, CORES = ("vit_micro", "vit_nano"), 16, ("cortex-m3", "cortex-m4", "cortex-m55")
PRODUCT = "matmul 64x64x64"

Reals = NDArray[np.float64]


def _log2(p: Reals) -> Reals:
    codes = np.minimum(np.rint(-np.log2(np.maximum(p, 1e-30))), 15)
    powers: Reals = np.where(codes < 15, 2.0**-codes, 0.0)
    return powers


def _divided(p: Reals) -> Reals:
    powers = _log2(p)
    shares: Reals = powers / powers.sum(-1, keepdims=True)
    return shares


FORMS: dict[str, Callable[[Reals], Reals] | None] = {
    "8 bits, even steps": None,
    "4 bits, even steps": lambda p: np.rint(p * 15 / p.max(-1, keepdims=True)) * p.max(-1, keepdims=True) / 15,
    "4 bits, powers of two": _log2,
    "4 bits, powers of two, over the row's sum": _divided,
}


def outputs(graph: IntGraph, codes: Sequence[Any], form: Callable[[Reals], Reals] | None) -> Reals:
    """The first output in reals, probabilities in a form of their own; None runs the graph."""
    tensors = graph.tensors
    shares: dict[str, Reals] = {}

    def coded(op: Op, values: Mapping[str, Codes], result: Codes) -> Codes:
        if form is not None and isinstance(op, Softmax):
            logits = values[op.inputs[0]].astype(float).reshape(op.rows, op.length) * tensors[op.inputs[0]].scale
            powers = np.exp(logits - logits.max(-1, keepdims=True))
            shares[op.output] = form(powers / powers.sum(-1, keepdims=True))
        elif isinstance(op, MatMul) and op.inputs[0] in shares:
            source, target = tensors[op.inputs[1]], tensors[op.output]
            right = (values[op.inputs[1]].astype(float) - source.zero_point) * source.scale
            left = shares[op.inputs[0]].reshape(op.batch, op.rows, op.inner)
            real = left @ right.reshape(op.batch, op.columns, op.inner).transpose(0, 2, 1)
            held = np.rint(real / target.scale) + target.zero_point
            result = np.clip(held, target.low, target.high).astype(target.dtype).ravel()
        return result

    values = trace(graph, codes, coded)
    if form is not None and not any(isinstance(op, MatMul) and op.inputs[0] in shares for op in graph.ops):
        raise SystemExit("no product reads a softmax")
    port = graph.outputs[0]
    reals: Reals = dequantize_output(graph, port, values[port.tensor]).astype(np.float64)
    return reals


def network(name: str, data: Path) -> dict[str, Any]:
    """Fidelity of every form, and RAM with 8 and with 4 bits."""
    with tempfile.TemporaryDirectory() as folder:
        edgeq("export", name, "--device", "cortex-m4", "--out", f"{folder}/out")
        graph = load(Artifact.open(Path(folder) / "out").model_file)
    adapter = load_model(parse_model(name, None, None))
    images = open_images(data / "cifar10" / "test.npz", role="evaluation")
    samples = [adapter.inputs(images.read(index)) for index in range(100, 100 + IMAGES)]
    with torch.no_grad():
        exact = [adapter.loaded.graph(*(torch.from_numpy(a) for a in sample))[0].numpy() for sample in samples]
    rows: dict[str, Any] = {}
    for label, form in FORMS.items():
        found = []
        for sample, wanted in zip(samples, exact, strict=True):
            codes = [quantize_input(graph, port, x) for port, x in zip(graph.inputs, sample, strict=True)]
            found.append(sqnr_db(wanted, outputs(graph, codes, form).astype(np.float32)))
        rows[label] = {"median": round(float(np.median(found)), 2), "worst": round(min(found), 2)}
    soft = {op.output for op in graph.ops if isinstance(op, Softmax)}
    halved = {n: replace(t, shape=(-(-t.size // 2),)) if n in soft else t for n, t in graph.tensors.items()}
    arenas = [plan_arena(graph).bytes, plan_arena(replace(graph, tensors=halved)).bytes]
    return {"sqnr_db": rows, "n": IMAGES, "arena": {"8 bits": arenas[0], "4 bits": arenas[1]}}


def product(core: str) -> dict[str, int]:
    """Instructions of a product of 8-bit codes and of one of log codes, whose integers are checked."""
    layer = mcu_kernels.layers()[PRODUCT]
    graph, op = mcu_kernels.network(layer), layer.op
    assert isinstance(op, MatMul)
    chance = np.random.default_rng(0)
    codes, values = chance.integers(6, 16, (64, 64)), chance.integers(-128, 128, (64, 64))
    held = np.zeros(4096, np.int8)
    held[:2048] = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8).astype(np.int8).ravel()
    powers = np.where(codes < 15, 1 << (14 - np.minimum(codes, 14)), 0)
    result = graph.tensors["y"]
    sums = powers @ (values - graph.tensors["z"].zero_point).T
    wanted = np.clip(op.scaling(sums) + result.zero_point, result.low, result.high)
    with tempfile.TemporaryDirectory() as folder:
        write_project(graph, Path(folder), [[held, values.astype(np.int8).ravel()]])
        kernels, vectors = Path(folder) / "bench_kernels.c", Path(folder) / "bench_vectors.c"
        text = kernels.read_text()
        body = Path(__file__).with_suffix(".c").read_text().replace("NAME", "bench")
        kernels.write_text(text.replace("void bench_matmul(", "static inline void bench_bytes(") + body)
        inside = "{" + ", ".join(map(str, wanted.ravel().tolist())) + "}"
        text = re.sub(r"(expected0\[1\]\[4096\] = \{\n\s*)\{[^}]*\}", lambda m: m[1] + inside, vectors.read_text())
        vectors.write_text(text)
        run = run_emulated(Path(folder), core)
    if run.outcome.different:
        raise SystemExit(f"{core}: {run.outcome.different} codes differ")
    return {"8 bits": mcu_kernels.count(layer, core), "4 bits, powers of two": run.layers[0]}


def main() -> None:
    """Measure both networks and the product on every core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    found: dict[str, Any] = {"product": {"layer": PRODUCT} | {core: product(core) for core in CORES}}
    print(json.dumps(found), flush=True)
    found["networks"] = {name: network(name, args.data) for name in NETWORKS}
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["networks"], indent=1))


if __name__ == "__main__":
    main()
