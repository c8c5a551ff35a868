"""Layers read from the written file: the right tensors, and what was written as something else. Random weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeq.candidate import record_layers
from edgeq.devices import open_model
from edgeq.diagnosis import first_lowered, is_lowered
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.layers import LayerFidelity, layer_fidelity, layers_by_weight
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme


class Net(nn.Module):
    """Convolutions with and without an activation, one in groups, and two linear layers with a mean before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 6, 1)
        self.wide = nn.Linear(6, 12)
        self.head = nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.point(torch.relu(self.depthwise(torch.relu(self.stem(x))))))
        return self.head(torch.relu(self.wide(x.mean((2, 3)))))


def compared(format_: str, folder: Path, broken: str = "") -> tuple[list[LayerFidelity], Legalized]:
    """Layers of the simulation and of the file, which is written with another bias at layer `broken`."""
    torch.manual_seed(0)
    inputs = [(torch.randn(1, 3, 8, 8),) for _ in range(2)]
    exporter = get_exporter(format_)
    graph = exporter.prepare(capture(Net().eval(), inputs[0]))
    config, placement = place_scheme(graph, exporter, "static")
    statistics = calibrate(graph, observed(graph, placement), inputs)
    legalized = legalize(graph, placement, config, exporter.rules, statistics, "static")
    emission = copy.deepcopy(legalized.emission)
    if broken:
        bias = emission.get_parameter(f"{broken}.bias")
        bias.data += bias.abs().max() + 0.5
    path = folder / exporter.file_name
    exporter.emit(emission, inputs[0], legalized.plan, path)
    read_back = exporter.read_back(path, legalized)
    assert not read_back.missing
    arrays = [tuple(x.numpy() for x in sample) for sample in inputs]
    shown = record_layers(open_model(path), read_back, layers_by_weight(graph, legalized.plan), arrays)
    return layer_fidelity(graph, legalized, inputs, shown), legalized


@pytest.mark.parametrize("format_", ["tflite", "openvino", "onnx"])
def test_each_layer_of_the_file_is_as_faithful_as_its_simulation(format_: str, tmp_path: Path) -> None:
    rows, _ = compared(format_, tmp_path)
    layers = {row.name: row for row in rows if row.weight_bits}
    assert set(layers) == {"stem", "depthwise", "point", "wide", "head"}
    for row in layers.values():
        assert row.file_db is not None, row.name
        assert row.total_db > 20
        assert -3 < row.file_db - row.total_db < 12, "a grid may belong to what reads the layer"


@pytest.mark.parametrize("format_", ["tflite", "openvino", "onnx"])
def test_a_layer_written_as_something_else_is_named(format_: str, tmp_path: Path) -> None:
    """The integers equal the plan all the same: only what the file computes tells."""
    rows, legalized = compared(format_, tmp_path, broken="point")
    lowered = {row.name for row in rows if is_lowered(row.total_db, row.file_db)}
    assert first_lowered(lowered, legalized.plan.ops) == "point"
    assert not lowered & {"stem", "depthwise"}
