"""The OpenVINO exporter: rules, read-back against damage, bytes. Random weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeq.errors import MissingError, ModelError, UsageError
from edgeq.exporters import get_exporter
from edgeq.exporters.openvino.graph import integers
from edgeq.exporters.openvino.readback import read_openvino
from edgeq.exporters.openvino.rules import SCHEMES, openvino_config
from edgeq.graph.capture import capture
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.spec import Precision, QuantPlan


class Net(nn.Module):
    """Convolution, grouped convolution, linear; a constant multiplies what the first writes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4)
        self.factor = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.conv(x) * self.factor)
        return self.linear(x.mean((2, 3)))


EXAMPLE = (torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8),)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Legalized]:
    torch.manual_seed(0)
    exporter = get_exporter("openvino")
    graph = exporter.prepare(capture(Net().eval(), EXAMPLE))
    config, placement = place_scheme(graph, exporter, "static", Precision(weight_bits=4))
    statistics = calibrate(graph, observed(graph, placement), [EXAMPLE])
    legalized = legalize(graph, placement, config, exporter.rules, statistics, "static")
    folder = tmp_path_factory.mktemp("openvino")
    for name in ("model.xml", "again.xml"):
        exporter.emit(legalized.emission, EXAMPLE, legalized.plan, folder / name)
    return folder / "model.xml", legalized


def test_all_integers_and_scales_are_those_of_the_plan(built: tuple[Path, Legalized]) -> None:
    path, legalized = built
    found = read_openvino(path, legalized)
    assert set(found.weights) == {t.name for t in legalized.plan.weights()}
    assert not found.missing
    assert not found.extra
    assert sorted(t.bits for t in legalized.plan.weights()) == [4, 8, 8]
    assert found.integer_mac_share == 1
    # 6x6x8 outputs of 27 products, 4x4x8 of 18, and 5 of 8.
    assert [op.macs for op in found.ops if op.macs] == [7776, 2304, 40]


def test_the_same_network_gives_the_same_bytes(built: tuple[Path, Legalized]) -> None:
    path, _ = built
    for suffix in (".xml", ".bin"):
        again = path.with_name("again.xml").with_suffix(suffix)
        assert path.with_suffix(suffix).read_bytes() == again.read_bytes()


def test_changed_integers_and_scales_are_found(built: tuple[Path, Legalized]) -> None:
    path, legalized = built
    weights = legalized.plan.weights()
    wrong = replace(weights[0], codes_sha256="0" * 64)
    qparams = weights[-1].uniform
    scaled = replace(weights[-1], qparams=replace(qparams, scale=qparams.scale * np.float32(1.0001)))
    for changed in (wrong, scaled):
        plan = QuantPlan("static", {**legalized.plan.tensors, changed.name: changed}, legalized.plan.ops)
        found = read_openvino(path, replace(legalized, plan=plan))
        assert found.missing == (changed.name,)
        assert len(found.extra) == 1


def test_a_float_file_has_no_integers(tmp_path: Path) -> None:
    path = tmp_path / "float.xml"
    get_exporter("openvino").emit(capture(Net().eval(), EXAMPLE), EXAMPLE, None, path)
    found = read_openvino(path, None)
    assert found.integer_mac_share == 0
    assert not found.weights
    assert not found.extra


def test_other_files_and_a_missing_package_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.xml").write_text("<net")
    with pytest.raises(ModelError) as caught:
        read_openvino(tmp_path / "x.xml", None)
    assert caught.value.code == "EQ-M403"
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingError) as missing:
        read_openvino(tmp_path / "x.xml", None)
    assert missing.value.code == "EQ-P400"
    with pytest.raises(MissingError):
        get_exporter("openvino").emit(capture(Net().eval(), EXAMPLE), EXAMPLE, None, tmp_path / "y.xml")


def test_an_operation_without_conversion_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(ModelError) as caught:
        get_exporter("openvino").emit(capture(Odd().eval(), EXAMPLE), EXAMPLE, None, tmp_path / "odd.xml")
    assert caught.value.code == "EQ-M402"
    assert not (tmp_path / "odd.xml").exists()


def test_unknown_scheme() -> None:
    with pytest.raises(UsageError, match="unknown scheme 'statik'"):
        openvino_config("statik", Precision())
    assert SCHEMES == ("weights", "dynamic", "static", "integer")


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_four_bit_constants_are_read(count: int) -> None:
    openvino = pytest.importorskip("openvino")
    codes = np.random.default_rng(count).integers(-8, 8, (1, count))
    constant = openvino.op.Constant(openvino.Type.i4, openvino.Shape([1, count]), [int(c) for c in codes[0]])
    np.testing.assert_array_equal(integers(constant), codes)
