"""What scales of groups of 4-bit weights are worth, and what they cost; writes `results/weight_groups.json`.

    python tools/bench/weight_groups.py --data DATA_FOLDER [--only kernels weights vit_nano vit_s ...] [--seeds 0 1 2]

`kernels`: time of one linear layer in LiteRT, scheme `dynamic`, against INT8 in alternation, one thread. `weights`: all
weights but those of the first, the last and depthwise layers rounded to nearest, activations float: dB of the outputs.
The networks: OpenVINO files by the recipe of `--bits w4a8` with two-level scales against files with a scale a row: what
they weigh, dB of the outputs, time in alternation, time and memory that compiling takes. The ViT-S is that
of `export_quality.py`. Timings are of one machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from export_quality import find_vit_s
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgeq.artifact import model_bytes
from edgeq.build import build_scheme
from edgeq.config import ExportConfig
from edgeq.data import open_images, preprocess
from edgeq.devices import RuntimeModel, open_model
from edgeq.devices.litert import LiteRtModel
from edgeq.devices.timing import median_interval, paired_latency
from edgeq.exporters import get_exporter
from edgeq.exporters.base import Exporter
from edgeq.exporters.openvino.exporter import OpenVinoExporter
from edgeq.exporters.openvino.rules import OPENVINO
from edgeq.graph.capture import capture
from edgeq.graph.kinds import op_kind
from edgeq.graph.legalize import legalize
from edgeq.graph.placement import place, weight_of
from edgeq.graph.rewrite import fetch
from edgeq.metrics import sqnr_db, summarize
from edgeq.models.base import ModelRequest
from edgeq.models.image_onnx import import_image_network
from edgeq.models.vit import load_vit
from edgeq.progress import Silent
from edgeq.quant.uniform import dequantize, quantize
from edgeq.quant.weights import weight_qparams
from edgeq.session import Job, Stages, prepare
from edgeq.spec import PerChannel, PerGroup, Precision, Preprocess, QuantConfig, QuantRule, QuantSpec

RESULT = Path(__file__).parent / "results" / "weight_groups.json"
LAYERS = ((197, 384, 1536), (197, 1536, 384), (1, 384, 1536), (1, 384, 51864))  # rows, inputs, outputs
FOUR = QuantSpec(4, True, PerChannel(0), "mse", narrow=True)
ROUNDS = 60
LABELLED = 500  # items on which fidelity is measured at most, where there are more than an export holds out
SIZES = (0, 128, 64, 32)  # 0: a scale a row
NETWORKS = {
    "vit_nano": (("static", "integer"), ("linear",)),
    "vit_s": (("integer",), ("linear",)),
    "yolox_nano": (("static",), ("linear", "conv2d")),
    "depth_nano": (("static",), ("linear", "conv2d")),
}
"""Schemes, and kinds of layers whose weights are on groups."""


def kernels() -> Iterator[dict[str, Any]]:
    """Times of single layers by the grid of their weight."""
    specs = {"int8": replace(FOUR, bits=8), "row": FOUR}
    specs |= {str(size): replace(FOUR, granularity=PerGroup(size, half=True)) for size in (32, 64, 128)}
    exporter = get_exporter("tflite")
    for rows, inputs, outputs in LAYERS:
        torch.manual_seed(0)
        x = torch.randn(rows, inputs)
        graph = capture(nn.Linear(inputs, outputs).eval(), (x,))
        models = {}
        for name, spec in specs.items():
            config = exporter.config("dynamic", Precision())
            config = replace(config, rules=(*config.rules, QuantRule(weight=replace(spec, observer="minmax"))))
            legalized = legalize(graph, place(graph, config, exporter.rules), config, exporter.rules, {}, "dynamic")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "layer.tflite"
                exporter.emit(legalized.emission, (x,), legalized.plan, path)
                models[name] = LiteRtModel(path.read_bytes())
            models[name].prepare(x.numpy())
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS):
            for name, model in models.items():
                started = time.perf_counter()
                model.invoke()
                times[name].append(time.perf_counter() - started)
        ratios = {n: [t / base for t, base in zip(found, times["int8"], strict=True)] for n, found in times.items()}
        shape = {"rows": rows, "inputs": inputs, "outputs": outputs, "rounds": ROUNDS}
        yield shape | {"time_to_int8": {n: round(statistics.median(r), 2) for n, r in ratios.items()}}


def rounded(weight: Tensor, size: int, kind: str) -> tuple[Tensor, float]:
    """A weight on its grid, and the bytes of its codes and of the scales of its groups."""
    grouped = bool(size) and weight[0].numel() % size == 0
    group = PerGroup(size, two_level=kind == "whole")
    grid = weight_qparams(weight, replace(FOUR, granularity=group) if grouped else FOUR)
    scales = weight.numel() / size * (1 if kind == "whole" else 4) if grouped else 0.0
    return dequantize(quantize(weight, grid), grid), weight.numel() / 2 + scales


@torch.no_grad()
def weights(name: str, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """What grids of weights cost the outputs."""
    layers = [p for n in graph.graph.nodes if op_kind(n) in ("linear", "conv2d") and (p := weight_of(n))]
    kept = {p: fetch(graph, p).clone() for p in list(dict.fromkeys(layers))[1:-1]}
    kept = {p: w for p, w in kept.items() if w.ndim == 2 or w.shape[1] > 1}
    reference = [graph(x) for x in inputs]
    for kind, size in (("row", 0), ("whole", 64), ("whole", 32), ("whole", 16), ("free", 64), ("free", 32)):
        stored = 0.0
        for path, weight in kept.items():
            value, taken = rounded(weight, size, kind)
            fetch(graph, path).copy_(value)
            stored += taken
        outputs = [graph(x) for x in inputs]
        pairs = [list(zip(r, o, strict=True)) for r, o in zip(reference, outputs, strict=True)]
        db = [min(sqnr_db(r.numpy(), o.numpy()) for r, o in found) for found in pairs]
        row = {"network": name, "scales": kind, "group": size, "kilobytes": round(stored / 1000), "n": len(db)}
        yield row | {"median_db": round(statistics.median(db), 1), "worst_db": round(min(db), 1)}
    for path, weight in kept.items():
        fetch(graph, path).copy_(weight)


def samples(folder: Path, count: int, spec: Preprocess) -> list[Tensor]:
    """Some images as inputs."""
    source = open_images(folder, role="evaluation")
    return [torch.from_numpy(preprocess(source.read(i), spec))[None] for i in range(count)]


def networks(data: Path) -> Iterator[dict[str, Any]]:
    """A transformer and a detector with trained weights."""
    nano = load_vit(ModelRequest(family="vit", variant="vit_nano", path=None)).loaded
    assert nano.preprocess is not None
    yield from weights("vit_nano", nano.graph, samples(data / "cifar10" / "test.npz", 16, nano.preprocess))
    detector, _ = import_image_network(data / "yolo" / "yolox_nano.onnx", "a detector", None)
    rows, columns = detector.input_shapes[0][2:]
    spec = Preprocess(rows, columns, (0, 0, 0), (1 / 255,) * 3, "letterbox", align="corner", channels="bgr")
    yield from weights("yolox_nano", detector.graph, samples(data / "yolo" / "images", 6, spec))


class Grouped(OpenVinoExporter):
    """Writes 4-bit weights of some kinds of layers with two-level scales of one size; 0 for a scale a row."""

    rules = replace(OPENVINO, least_two_level=0)

    def __init__(self, size: int, kinds: Sequence[str]) -> None:
        self.size, self.kinds = size, kinds

    def config(self, scheme: str, precision: Precision) -> QuantConfig:
        """As the exporter's, with this grid."""
        config = super().config(scheme, precision)
        if precision.weight_bits != FOUR.bits:
            return config
        granularity = PerGroup(self.size, two_level=True) if self.size else PerChannel(0)
        rules = [QuantRule(op=kind, weight=replace(FOUR, granularity=granularity)) for kind in self.kinds]
        return replace(config, rules=(*config.rules, *rules))


def files(job: Job, schemes: Sequence[str], kinds: Sequence[str], scratch: Path) -> Iterator[dict[str, Any]]:
    """Files of a network by the groups of its weights, against the one with a scale a row."""
    session = job.first
    inputs = list(inputs_of(job))
    exact = open_model(session.float_path, threads=1)
    reference = [exact.run(*x) for x in inputs]
    for scheme in schemes:
        rows: RuntimeModel | None = None
        decibels: list[NDArray[np.float64]] = []
        for size in SIZES:
            grouped = replace(session, exporter=cast(Exporter, Grouped(size, kinds)))
            candidate, _ = build_scheme(grouped, scheme, scratch / f"{scheme}-{size}", Stages(Silent()))
            assert not candidate.rejected, candidate.rejected
            model = open_model(candidate.path, threads=1)
            pairs = [zip(r, model.run(*x), strict=True) for r, x in zip(reference, inputs, strict=True)]
            decibels.append(np.array([min(sqnr_db(r, o) for r, o in pair) for pair in pairs]))
            gains = decibels[-1] - decibels[0]
            row = {"scheme": scheme, "seed": job.config.seed, "group": size, "bytes": model_bytes(candidate.path)}
            row |= {"sqnr_db": summarize(list(decibels[-1])).to_dict(), "gain_db": round(float(np.median(gains)), 2)}
            row["gain_interval"] = [round(end, 2) for end in median_interval(gains)]
            row["grouped_weights"] = sum(t.uniform.spec.two_level for t in candidate.plan.weights())
            row["compile"] = compiling(candidate.path)
            row["kernels"] = model.execution().kernels()
            model.prepare(*inputs[0])
            rows = rows or model
            row["time_to_rows"] = paired_latency(rows.invoke, model.invoke, runs=ROUNDS).to_dict()
            print(json.dumps(row), flush=True)
            yield row


def inputs_of(job: Job) -> Iterator[tuple[NDArray[Any], ...]]:
    """What fidelity is measured on: labelled items where there are any, otherwise what calibration holds out."""
    if job.labelled is None:
        yield from job.first.samples.held_out
        return
    for index in range(0, len(job.labelled), max(1, len(job.labelled) // LABELLED)):
        yield job.first.adapter.inputs(job.labelled.read(index))


def compiling(path: Path) -> dict[str, float]:
    """Seconds that loading and compiling a file takes, median of several processes, and the peak of their memory."""
    program = (
        "import resource, sys, time; from edgeq.devices import open_model; import openvino; openvino.Core()\n"
        "start = time.perf_counter(); open_model(sys.argv[1], threads=1)\n"
        "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    runs = [subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=True) for _ in range(3)]
    seconds, peaks = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return {"seconds": round(statistics.median(seconds), 3), "peak_mb": round(statistics.median(peaks))}


def job_of(name: str, data: Path, scratch: Path, seed: int = 0) -> Job:
    """A network with its data."""
    vit_s, photos = find_vit_s(), data / "yolo" / "images"
    made: dict[str, dict[str, Any]] = {
        "vit_nano": {"model": "vit_nano", "data": data / "cifar10" / "test.npz"},
        "vit_s": {"model": str(vit_s), "family": "vit", "calib": photos, "samples": 32},
        "yolox_nano": {"model": str(data / "yolo" / "yolox_nano.onnx"), "family": "yolo", "calib": photos},
        "depth_nano": {"model": "depth_nano"},
    }
    config = ExportConfig(device="x86", bits="w4a8", threads=1, seed=seed, **made[name])
    return prepare(config, scratch, Stages(Silent()))


def measured(name: str, data: Path, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Files of one network; seeds change its calibration samples and rotations, and so all of its 4-bit weights."""
    schemes, kinds = NETWORKS[name]
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            yield from files(job_of(name, data, Path(folder), seed), schemes, kinds, Path(folder))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    names = ["kernels", "weights", *NETWORKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]]
    parts = {"kernels": kernels, "weights": lambda: networks(args.data)}
    parts |= {name: partial(measured, name, args.data, args.seeds) for name in NETWORKS}
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for name in args.only:
        found[name] = list(parts[name]())
        print(name, json.dumps(found[name]), flush=True)
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
