"""What scales of groups of 4-bit weights are worth, and what they cost; writes `results/weight_groups.json`.

    python tools/bench/weight_groups.py --data DATA_FOLDER [--only kernels weights]

`kernels`: time of one linear layer in LiteRT, scheme `dynamic`, against INT8 in alternation, one thread. `weights`: all
weights but those of the first, the last and depthwise layers rounded to nearest, activations float: dB of the outputs.
There `whole` scales are multiples, 1 to 18, of a step a row, as decision 0021 has them. Timings are of one machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edgeq.data import open_images, preprocess
from edgeq.devices.litert import LiteRtModel
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.kinds import op_kind
from edgeq.graph.legalize import legalize
from edgeq.graph.placement import place, weight_of
from edgeq.graph.rewrite import fetch
from edgeq.metrics import sqnr_db
from edgeq.models.base import ModelRequest
from edgeq.models.image_onnx import import_image_network
from edgeq.models.vit import load_vit
from edgeq.quant.uniform import dequantize, quantize
from edgeq.quant.weights import weight_qparams
from edgeq.spec import PerChannel, PerGroup, Precision, Preprocess, QParams, QuantRule, QuantSpec

RESULT = Path(__file__).parent / "results" / "weight_groups.json"
LAYERS = ((197, 384, 1536), (197, 1536, 384), (1, 384, 1536), (1, 384, 51864))  # rows, inputs, outputs
FOUR = QuantSpec(4, True, PerChannel(0), "mse", narrow=True)
ROUNDS = 60
LARGEST_MULTIPLE = 18  # times the largest code, 7, it is an 8-bit code


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


def whole(grid: QParams) -> QParams:
    """`grid` with scales that are whole multiples of a step a row."""
    step = grid.scale.max(1, keepdims=True) / LARGEST_MULTIPLE
    return replace(grid, scale=step * np.clip(np.rint(grid.scale / step), 1, LARGEST_MULTIPLE))


def rounded(weight: Tensor, size: int, kind: str) -> tuple[Tensor, float]:
    """A weight on its grid, and the bytes of its codes and of the scales of its groups."""
    grouped = bool(size) and weight[0].numel() % size == 0
    grid = weight_qparams(weight, replace(FOUR, granularity=PerGroup(size)) if grouped else FOUR)
    grid = whole(grid) if grouped and kind == "whole" else grid
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


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=["kernels", "weights"], default=["kernels", "weights"])
    args = parser.parse_args()
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]]
    parts = {"kernels": kernels, "weights": lambda: networks(args.data)}
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for name in args.only:
        found[name] = list(parts[name]())
        print(name, json.dumps(found[name]), flush=True)
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
