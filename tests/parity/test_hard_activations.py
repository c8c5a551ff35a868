"""Hard swish, hard sigmoid and squeeze-and-excitation in integers: what was written, what ran, what it computed.

Weights are random: this is about kernels, not accuracy.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.devices import open_model
from edgeq.devices.litert import LiteRtModel
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.kinds import count_ops
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.graph.transforms.convolution import fit_convolution
from edgeq.metrics import sqnr_db
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme

SHAPE = (1, 3, 24, 24)


class Block(nn.Module):
    """What a MobileNetV3 is made of; with `outlet` one hard swish is put out, which no weight can undo."""

    def __init__(self, outlet: bool = False) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project, self.last = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 24, 1)
        self.wide, self.head = nn.Linear(24, 32), nn.Linear(32, 10)
        self.hard = nn.Hardswish()
        self.outlet = outlet
        with torch.no_grad():
            for layer in (self.stem, self.deep, self.last):
                layer.weight *= torch.logspace(0.0, 1.2, layer.out_channels).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        start = self.hard(self.stem(x))
        deep = self.hard(self.deep(start))
        gate = self.excite(torch.relu(self.squeeze(deep.mean((2, 3), keepdim=True))))
        x = self.project(deep * nn.functional.hardsigmoid(gate))
        x = self.hard(self.last(x)).mean((2, 3))
        x = self.head(self.hard(self.wide(x)))
        return (x, start) if self.outlet else (x,)


def built(format_: str, even: bool, outlet: bool = False) -> tuple[fx.GraphModule, fx.GraphModule, Legalized]:
    """The captured network, what was quantized, and the result."""
    torch.manual_seed(3)
    exporter, samples = get_exporter(format_), [(torch.randn(SHAPE),) for _ in range(4)]
    captured = capture(Block(outlet).eval(), samples[0])
    graph = exporter.prepare(captured)
    if even:
        graph, (applied,) = fit_convolution(graph, lambda: iter(samples))
        assert applied.sites == 4 and not applied.skipped, "stem, deep, last; squeeze, before ReLU"
    config, placement = place_scheme(graph, exporter, "integer")
    statistics = calibrate(graph, observed(graph, placement), samples)
    return captured, graph, legalize(graph, placement, config, exporter.rules, statistics, "integer")


@pytest.mark.parametrize("format_", ["tflite", "onnx"])
def test_the_function_stays_and_the_sixth_is_in_the_weights(format_: str) -> None:
    captured, graph, _ = built(format_, even=False)
    x = torch.randn(SHAPE)
    assert (captured(x)[0] - graph(x)[0]).abs().max() < 1e-4 * captured(x)[0].abs().max()
    kinds = count_ops(graph)
    assert not {"hardswish", "hardsigmoid"} & set(kinds)
    assert (kinds["hardtanh"], kinds["mul"], kinds["add"]) == (5, 5, 4), "the gate's sum is a bias, sixths are weights"


def test_what_is_put_out_is_divided_by_a_product() -> None:
    captured, graph, _ = built("tflite", even=False, outlet=True)
    x = torch.randn(SHAPE)
    for wanted, found in zip(captured(x), graph(x), strict=True):
        assert (wanted - found).abs().max() < 1e-4 * wanted.abs().max()
    assert count_ops(graph)["mul"] == 6


@pytest.mark.parametrize("even", [False, True])
def test_tflite_runs_everything_in_one_partition_of_integers(even: bool, tmp_path: Path) -> None:
    _, graph, legalized = built("tflite", even)
    exporter, path, x = get_exporter("tflite"), tmp_path / "model.tflite", torch.randn(SHAPE)
    exporter.emit(legalized.emission, (x,), legalized.plan, path)
    read_back = exporter.read_back(path, legalized)
    assert not read_back.missing and not read_back.extra and not read_back.misfits
    census = read_back.census()
    assert census["ADD int8"] == 4 and census["MUL int8"] == (8 if even else 5), census
    assert not any("RELU" in name or "HARD" in name or "MINIMUM" in name for name in census), "clips are absorbed"
    model = LiteRtModel(path)
    floats = [op.name for op in model.ops if not op.delegated]
    assert model.delegated[0] == 1 and not floats, floats
    assert off_by(path, x.numpy()) == {}
    with torch.no_grad():
        expected = legalized.simulation(x)[0].numpy()
        truth = graph(x)[0].numpy()
    (found,) = model.run(x.numpy())
    assert sqnr_db(expected, found) > 35 and sqnr_db(truth, found) > 22


def off_by(path: Path, x: np.ndarray[Any, Any]) -> dict[str, float]:
    """Sums, products and means of a file that differ by more than a code from what they read, by kind."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), experimental_preserve_all_tensors=True)
    runner.allocate_tensors()
    runner.set_tensor(runner.get_input_details()[0]["index"], LiteRtModel(path).inputs[0].to_codes(x))
    runner.invoke()
    worst: Counter[str] = Counter()
    for op in runner._get_ops_details():
        if op["op_name"] not in ("ADD", "MUL", "MEAN"):
            continue
        details = [runner._get_tensor_details(int(i), 0) for i in (*op["inputs"], *op["outputs"])]
        grids = [d["quantization"] for d in details]
        values = [runner.get_tensor(d["index"]).astype(np.float64) for d in details]
        reals = [(v - z) * s for v, (s, z) in zip(values, grids, strict=True)]
        if op["op_name"] == "MEAN":
            result = reals[0].mean(tuple(int(a) for a in values[1].reshape(-1)), keepdims=values[-1].ndim == 4)
        else:
            result = reals[0] + reals[1] if op["op_name"] == "ADD" else reals[0] * reals[1]
        if op["op_name"] == "ADD":
            result = result.clip(0, 6)
        step, zero = grids[-1]
        gap = np.abs(values[-1] - (result / step + zero).clip(-128, 127))
        if gap.max() > 1.01:
            worst[op["op_name"]] = max(worst[op["op_name"]], float(gap.max()))
    return dict(worst)


def test_the_clip_loses_nothing_on_its_grid() -> None:
    _, graph, legalized = built("tflite", even=False)
    clips = [n.name for n in graph.graph.nodes if n.target is torch.ops.aten.hardtanh.default]
    for name in clips:
        grid = legalized.plan.tensors[name].uniform
        assert float(grid.scale) == pytest.approx(6 / 255) and int(grid.zero_point) == -128


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_other_formats_compute_what_is_simulated(format_: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    exporter, samples = get_exporter(format_), [(torch.randn(SHAPE),) for _ in range(4)]
    graph = exporter.prepare(capture(Block().eval(), samples[0]))
    config, placement = place_scheme(graph, exporter, "integer")
    statistics = calibrate(graph, observed(graph, placement), samples)
    legalized = legalize(graph, placement, config, exporter.rules, statistics, "integer")
    path = tmp_path / exporter.file_name
    exporter.emit(legalized.emission, samples[0], legalized.plan, path)
    model = open_model(path)
    with torch.no_grad():
        expected = legalized.simulation(*samples[0])[0].numpy()
    assert sqnr_db(expected, model.run(samples[0][0].numpy())[0]) > 35
    if format_ == "onnx":
        ran = Counter(op.op for op in model.execution().ops)
        assert ran["QLinearAdd"] == 4 and ran["QLinearMul"] == 5, ran
        assert not {"Clip", "HardSigmoid", "HardSwish", "Relu"} & set(ran), ran
