"""Bounds noted on nodes: validated, kept by renaming, honoured by the grids."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.errors import InternalError
from edgeq.exporters import get_exporter
from edgeq.graph.bounds import Bounds, bounds_of, set_bounds
from edgeq.graph.capture import capture
from edgeq.graph.legalize import legalize, observed
from edgeq.graph.naming import rebuild
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme


class Two(nn.Module):
    """Two linears with a sigmoid between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture
def graph() -> fx.GraphModule:
    torch.manual_seed(0)
    return capture(Two().eval(), (torch.randn(1, 4),))


def node(graph: fx.GraphModule, name: str) -> fx.Node:
    return next(n for n in graph.graph.nodes if n.name == name)


def test_bounds_are_noted_and_survive_copies_and_renaming(graph: fx.GraphModule) -> None:
    assert bounds_of(node(graph, "first")) is None
    set_bounds(node(graph, "first"), -1.0, 2.0, "test")
    for again in (graph, copy.deepcopy(graph), rebuild(graph)):
        assert bounds_of(node(again, "first")) == Bounds(-1.0, 2.0, "test")
        assert bounds_of(node(again, "second")) is None


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 2.0), (-2.0, -1.0), (0.0, 0.0), (1.0, -1.0), (float("nan"), 1.0), (0.0, float("nan"))]
)
def test_impossible_bounds_are_refused(graph: fx.GraphModule, low: float, high: float) -> None:
    with pytest.raises(InternalError) as caught:
        set_bounds(node(graph, "first"), low, high, "test")
    assert (caught.value.code, caught.value.place) == ("EQ-Z300", "first")
    assert bounds_of(node(graph, "first")) is None


def test_bounded_tensors_need_no_calibration_and_get_their_grid(graph: fx.GraphModule) -> None:
    exporter = get_exporter("tflite")
    relu = next(n for n in graph.graph.nodes if "relu" in n.name)
    set_bounds(relu, 0.0, 5.1, "known beforehand")
    config, placement = place_scheme(graph, exporter, "integer")
    assert relu.name in placement.specs
    names = observed(graph, placement)
    assert relu.name not in names
    statistics = calibrate(graph, names, [(torch.randn(1, 4),) for _ in range(2)])
    plan = legalize(graph, placement, config, exporter.rules, statistics, "integer").plan
    entry = plan.tensors[relu.name]
    assert entry.provenance == "known beforehand"
    assert float(entry.uniform.scale) == pytest.approx(5.1 / 255)
    assert np.array_equal(entry.uniform.zero_point, -128)
