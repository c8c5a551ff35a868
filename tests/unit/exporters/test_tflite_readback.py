"""Read-back: integers in the file against the plan, and what happens when they differ. Random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeq.errors import ModelError, UsageError
from edgeq.exporters import get_exporter
from edgeq.exporters.tflite.readback import read_tflite
from edgeq.exporters.tflite.rules import tflite_config
from edgeq.graph.capture import capture
from edgeq.graph.legalize import Legalized, legalize
from edgeq.recipe import place_scheme
from edgeq.spec import Precision, QuantPlan


class Net(nn.Module):
    """Convolution, depthwise convolution, 1x1 convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.point(torch.relu(self.depthwise(self.conv(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Legalized]:
    torch.manual_seed(0)
    example = (torch.randn(1, 3, 8, 8),)
    exporter = get_exporter("tflite")
    graph = capture(Net().eval(), example)
    config, placement = place_scheme(graph, exporter, "dynamic")
    legalized = legalize(graph, placement, config, exporter.rules, {}, "dynamic")
    path = tmp_path_factory.mktemp("net") / "net.tflite"
    exporter.emit(legalized.emission, example, legalized.plan, path)
    again = path.with_name("again.tflite")
    exporter.emit(legalized.emission, example, legalized.plan, again)
    assert path.read_bytes() == again.read_bytes()
    return path, legalized


def test_every_planned_integer_is_in_the_file(emitted: tuple[Path, Legalized]) -> None:
    path, legalized = emitted
    found = read_tflite(path, legalized.plan)
    assert set(found.weights) == {t.name for t in legalized.plan.weights()}
    assert len(found.weights) == 4
    assert found.missing == ()
    assert found.extra == ()
    for name, codes in found.weights.items():
        scale = legalized.plan.tensors[name].qparams.scale.reshape(-1, *[1] * (codes.ndim - 1))
        weight = legalized.emission.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(codes * scale, weight, rtol=0, atol=1e-7)


def test_one_wrong_code_is_noticed(emitted: tuple[Path, Legalized]) -> None:
    path, legalized = emitted
    name = legalized.plan.weights()[0].name
    tensors = dict(legalized.plan.tensors)
    tensors[name] = replace(tensors[name], codes_sha256="0" * 64)
    found = read_tflite(path, QuantPlan("dynamic", tensors, legalized.plan.ops))
    assert found.missing == (name,)
    assert len(found.extra) == 1


def test_one_wrong_scale_is_noticed(emitted: tuple[Path, Legalized]) -> None:
    path, legalized = emitted
    name = legalized.plan.weights()[-1].name
    tensors = dict(legalized.plan.tensors)
    grid = tensors[name].qparams
    tensors[name] = replace(tensors[name], qparams=replace(grid, scale=np.nextafter(grid.scale, np.float32(1))))
    assert read_tflite(path, QuantPlan("dynamic", tensors, legalized.plan.ops)).missing == (name,)


def test_macs_are_those_of_the_layers(emitted: tuple[Path, Legalized]) -> None:
    path, legalized = emitted
    found = read_tflite(path, legalized.plan)
    expected = 64 * 8 * 27 + 64 * 8 * 9 + 64 * 4 * 8 + 4 * 5
    assert sum(op.macs for op in found.ops) == expected
    assert found.integer_mac_share == 1.0


def test_float_file_has_no_integers(tmp_path: Path) -> None:
    example = (torch.randn(1, 3, 8, 8),)
    path = tmp_path / "float.tflite"
    get_exporter("tflite").emit(capture(Net().eval(), example), example, None, path)
    found = read_tflite(path, None)
    assert found.integer_mac_share == 0.0
    assert not found.extra


def test_not_a_tflite_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="not a TFLite file"):
        read_tflite(path, None)


def test_weight_only_is_refused_with_the_alternative() -> None:
    with pytest.raises(UsageError) as caught:
        tflite_config("weights", Precision())
    assert "dynamic" in str(caught.value.hint)


def test_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        tflite_config("statik", Precision())
    assert "static" in str(caught.value.hint)
