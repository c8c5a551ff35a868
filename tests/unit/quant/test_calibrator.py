"""Calibration of a traced graph: what is seen, what is kept, what is refused."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.errors import DataError, InternalError, ModelError
from edgeq.quant.calibrator import Calibrator, calibrate
from edgeq.quant.statistics import TensorStatistics


class Net(nn.Module):
    """Two layers, and a division that overflows for an input of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.second(torch.relu(self.first(x)))
        return hidden / x.abs().sum()


@pytest.fixture
def graph() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Net())


def batches(n: int = 5) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(3, 4, generator=generator),) for _ in range(n)]


def test_statistics_are_those_of_the_tensors(graph: fx.GraphModule) -> None:
    ticks: list[int] = []
    found = calibrate(graph, ["second", "x", "relu"], iter(batches()), ticks.append)
    assert list(found) == ["second", "x", "relu"]
    assert ticks == [1] * 5
    net = graph
    expected = TensorStatistics()
    for (x,) in batches():
        expected.update(torch.relu(net.get_submodule("first")(x)))
    assert found["relu"] == expected
    assert found["x"].count == 60
    assert found["second"].count == 30


def test_order_of_samples_does_not_matter(graph: fx.GraphModule) -> None:
    assert calibrate(graph, ["relu"], batches()) == calibrate(graph, ["relu"], batches()[::-1])


def test_intermediates_are_freed(graph: fx.GraphModule) -> None:
    alive: list[weakref.ref[Tensor]] = []

    class Spy(Calibrator):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op != "placeholder":
                gc.collect()
                alive[:] = [r for r in alive if r() is not None]
                assert len(alive) <= 2
                alive.append(weakref.ref(value))
            return value

    Spy(graph, []).observe(batches()[0])


def test_no_gradients_are_kept(graph: fx.GraphModule) -> None:
    calibrate(graph, ["second"], batches())
    assert all(p.grad is None for p in graph.parameters())
    assert torch.is_grad_enabled()


def test_nothing_to_calibrate_with(graph: fx.GraphModule) -> None:
    with pytest.raises(DataError) as caught:
        calibrate(graph, ["x"], [])
    assert caught.value.code == "EQ-D030"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_inputs_are_the_data_s_fault(graph: fx.GraphModule, bad: float) -> None:
    with pytest.raises(DataError) as caught:
        calibrate(graph, [], [*batches(2), (torch.full((3, 4), bad),)])
    assert caught.value.code == "EQ-D034"
    assert "batch 2" in caught.value.message


def test_nan_inside_is_the_model_s_fault(graph: fx.GraphModule) -> None:
    with pytest.raises(ModelError) as caught:
        calibrate(graph, ["relu", "truediv"], [*batches(1), (torch.zeros(3, 4),)])
    assert caught.value.code == "EQ-M031"
    assert caught.value.place == "truediv"


def test_a_wrong_shape_names_the_operation(graph: fx.GraphModule) -> None:
    with pytest.raises(ModelError) as caught:
        calibrate(graph, ["relu"], [(torch.zeros(3, 5),)])
    assert caught.value.code == "EQ-M032"
    assert caught.value.place == "first"


def test_mistakes_of_the_caller(graph: fx.GraphModule) -> None:
    for names, batch in ((["nowhere"], batches(1)), (["output"], batches(1)), (["x"], [()])):
        with pytest.raises(InternalError) as caught:
            calibrate(graph, names, batch)
        assert caught.value.code == "EQ-Z020"
