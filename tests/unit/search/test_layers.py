"""Which layers are decided about, what follows them, and what each loses. Random weights: structure, no quality."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.exporters import get_exporter
from edgeq.exporters.base import Exporter
from edgeq.graph.capture import capture
from edgeq.graph.legalize import legalize, observed
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.search.layers import all_but, find_layers, kept_float, layer_losses
from edgeq.search.problem import FLOAT
from edgeq.spec import Precision


class Residual(nn.Module):
    """Convolutions with SiLU, a residual sum, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.silu(self.first(x))
        x = x + torch.relu(self.second(x))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


LAYERS = {"first", "second", "third", "head"}


def prepared(fmt: str) -> tuple[fx.GraphModule, Exporter]:
    torch.manual_seed(0)
    exporter = get_exporter(fmt)
    return exporter.prepare(capture(Residual().eval(), (torch.zeros(1, 3, 8, 8),))), exporter


@pytest.mark.parametrize(("fmt", "narrow"), [("tflite", False), ("tflite", True), ("openvino", True), ("c", True)])
def test_layers_are_offered_what_the_runtime_has(fmt: str, narrow: bool) -> None:
    graph, exporter = prepared(fmt)
    found = {n.name: n for n in find_layers(graph, exporter, "integer", Precision(), narrow=narrow)}
    assert set(found) == LAYERS
    floats = () if fmt == "c" else (FLOAT,)
    narrowable = {"second", "third"} if narrow and fmt != "tflite" else set()  # the ends keep 8 bits
    assert {name: n.bits for name, n in found.items()} == {
        name: (*floats, 8, *((4,) if name in narrowable else ())) for name in LAYERS
    }
    assert found["second"].shape == found["third"].shape != found["first"].shape
    assert found["second"].macs == 8 * 8 * 8 * 8 * 9 and found["head"].macs == 32
    for layer in found.values():
        sizes = [layer.bytes[b] for b in layer.bits]
        assert sizes == sorted(sizes, reverse=True)


def test_what_only_freed_layers_write_is_freed_too() -> None:
    graph, exporter = prepared("tflite")
    placement = place_scheme(graph, exporter, "integer", Precision())[1]
    integer = {name for name, op in placement.ops.items() if op.mode != "float"}
    assert kept_float(graph, placement, LAYERS, set()) == ()
    freed = set(kept_float(graph, placement, LAYERS, {"first"}))
    assert "first" in freed and not freed & {"second", "third", "head", "add"}
    assert any(name.startswith("sigmoid") for name in freed) and any(name.startswith("mul") for name in freed)
    both = set(kept_float(graph, placement, LAYERS, {"first", "second"}))
    assert {"first", "second", "add"} <= both and "third" not in both
    assert set(kept_float(graph, placement, LAYERS, LAYERS)) >= integer


def test_one_layer_alone_takes_along_what_reads_nothing_else() -> None:
    graph, exporter = prepared("tflite")
    placement = place_scheme(graph, exporter, "integer", Precision())[1]
    left = set(placement.ops) - set(all_but(graph, placement, LAYERS, "first"))
    assert {"first"} <= left and not left & {"second", "third", "head", "add"}
    config, placed = place_scheme(
        graph, exporter, "integer", Precision(keep_float=all_but(graph, placement, LAYERS, "third"))
    )
    del config
    assert {name for name, op in placed.ops.items() if op.mode != "float"} & LAYERS == {"third"}


@pytest.mark.parametrize("fmt", ["tflite", "openvino", "c"])
def test_losses_alone_add_up_to_about_the_loss_of_all(fmt: str) -> None:
    graph, exporter = prepared(fmt)
    samples = [(torch.rand(1, 3, 8, 8),) for _ in range(4)]
    precision = Precision()
    config, placement = place_scheme(graph, exporter, "integer", precision)
    statistics = calibrate(graph, observed(graph, placement), samples)
    layers = find_layers(graph, exporter, "integer", precision, narrow=True)
    losses = layer_losses(graph, exporter, "integer", precision, statistics, layers, samples)
    assert set(losses) == {(n.name, b) for n in layers for b in n.bits if b != FLOAT}
    assert all(0 <= loss < 0.1 for loss in losses.values())
    for layer in layers:
        if 4 in layer.bits:
            assert losses[layer.name, 4] > losses[layer.name, 8]
    simulation = legalize(graph, placement, config, exporter.rules, statistics, "integer").simulation
    total = sum(losses[layer.name, 8] for layer in layers)
    with torch.no_grad():
        pairs = [(graph(*s)[0], simulation(*s)[0]) for s in samples]
    whole = sum(float((a - b).square().sum() / a.square().sum()) for a, b in pairs) / len(pairs)
    assert total / 10 < whole < total * 10


def test_tied_layers_keep_eight_bits_and_are_named() -> None:
    class Tied(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.third = self.second

    exporter = get_exporter("openvino")
    graph = exporter.prepare(capture(Tied().eval(), (torch.zeros(1, 3, 8, 8),)))
    layers = find_layers(graph, exporter, "static", replace(Precision()), narrow=True)
    tied = [n for n in layers if n.tie]
    assert len(tied) == 2 and len({n.tie for n in tied}) == 1 and all(4 not in n.bits for n in tied)
