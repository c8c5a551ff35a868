"""Constants are replaced for one operation only, wherever and however they are passed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgeq.errors import InternalError
from edgeq.graph.rewrite import aten, calls, fetch
from edgeq.graph.transforms.parameters import argument, parameter, set_parameter
from tests.unit.graph.transforms.small_models import captured


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.a(x)))


def test_a_tied_weight_is_parted() -> None:
    graph, x = captured(Tied(), 2, 4)
    first, second = calls(graph, aten.linear.default)
    weight = fetch(graph, "a.weight")
    path = set_parameter(graph, second, "weight", weight * 2)
    assert path == "a.weight_1"
    assert torch.equal(parameter(graph, first, "weight"), weight)
    hidden = torch.relu(nn.functional.linear(x, weight, fetch(graph, "a.bias")))
    torch.testing.assert_close(graph(x)[0], nn.functional.linear(hidden, weight * 2, fetch(graph, "a.bias")))
    again = set_parameter(graph, first, "weight", weight * 3)
    assert again == "a.weight", "its only reader left"


def test_the_original_keeps_its_memory() -> None:
    graph, _ = captured(nn.Linear(4, 3), 2, 4)
    (linear,) = calls(graph, aten.linear.default)
    path = str(linear.args[1].target)
    before = fetch(graph, path)
    kept = before.clone()
    shared = copy.copy(dict(graph.named_parameters()))
    set_parameter(graph, linear, "weight", before * 2)
    assert torch.equal(shared[path], kept)
    assert torch.equal(fetch(graph, path), kept * 2)


@pytest.mark.parametrize("module", [nn.Linear(4, 3, bias=False), nn.Conv1d(4, 3, 1, bias=False)])
def test_a_missing_bias_is_made(module: nn.Module) -> None:
    graph, x = captured(nn.Sequential(module), *((2, 4) if isinstance(module, nn.Linear) else (2, 4, 5)))
    (layer,) = calls(graph, aten.linear.default, aten.conv1d.default)
    before = graph(x)[0]
    assert argument(layer, "bias") is None
    path = set_parameter(graph, layer, "bias", torch.ones(3))
    assert path.endswith(".bias")
    torch.testing.assert_close(graph(x)[0], before + 1)
    graph.graph.lint()


def test_impossible_constants() -> None:
    graph, _ = captured(nn.Linear(4, 3), 2, 4)
    (linear,) = calls(graph, aten.linear.default)
    with pytest.raises(InternalError, match="finite") as caught:
        set_parameter(graph, linear, "weight", torch.full((3, 4), torch.nan))
    assert caught.value.code == "EQ-Z261"
    with pytest.raises(InternalError, match="no argument"):
        argument(linear, "gamma")
