"""Layers that stay float beside dynamically quantized ones. Random weights: kernels and integers, no quality."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeq.devices import open_model
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.legalize import legalize
from edgeq.recipe import place_scheme
from edgeq.spec import Precision


class Folded(nn.Module):
    """A convolution, and norms whose factors the converter multiplies into the layers behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, stride=4)
        self.norm, self.other = nn.LayerNorm(32), nn.LayerNorm(64)
        self.norm.weight.data.uniform_(0.5, 2)
        self.other.weight.data.uniform_(0.5, 2)
        self.first, self.second, self.head = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.nn.functional.gelu(self.first(self.norm(x)))
        return self.head(torch.nn.functional.gelu(self.second(self.other(x))).mean(1))


@pytest.mark.parametrize("kept", [(), ("first",), ("stem", "second"), ("stem", "first", "second", "head")])
def test_layers_kept_float_are_float_in_a_dynamic_file(kept: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    exporter = get_exporter("tflite")
    graph = exporter.prepare(capture(Folded().eval(), (torch.zeros(1, 3, 16, 16),)))
    config, placement = place_scheme(graph, exporter, "dynamic", Precision(keep_float=kept))
    legalized = legalize(graph, placement, config, exporter.rules, {}, "dynamic")
    path = tmp_path / "model.tflite"
    exporter.emit(legalized.emission, (torch.zeros(1, 3, 16, 16),), legalized.plan, path)
    found = exporter.read_back(path, legalized)
    assert not found.missing and not found.extra
    kernels = [op.kernel for op in found.ops if op.macs]
    assert kernels.count("dynamic") == 4 - len(kept) and kernels.count("float") == len(kept)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
    x = torch.rand(1, 3, 16, 16)
    (got,) = open_model(path, threads=1).run(x.numpy())
    with torch.no_grad():
        (wanted,) = graph(x)
    error = float((torch.from_numpy(got) - wanted).norm() / wanted.norm())
    assert error < (1e-4 if len(kept) == 4 else 0.05)
