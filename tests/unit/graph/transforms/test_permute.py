"""Reordered channels: the same function, and smaller errors on grids with groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeq.errors import UsageError
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.permute import channel_pairs, permute_channels, sort_by_range
from edgeq.spec import PerGroup, QuantSpec
from tests.unit.graph.transforms.small_models import Block, captured, relative

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)), (2, 6), 1),
    "block": (lambda: Block("fused", 8, 2), (1, 4, 8), 1),
    "no-bias": (lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.SiLU(), nn.Linear(8, 4)), (2, 6), 1),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 1)),
        (1, 3, 9, 9),
        2,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.SiLU(), nn.Conv2d(8, 4, 1)
        ),
        (1, 3, 9, 9),
        1,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_order_is_exact(name: str) -> None:
    make, shape, count = MODELS[name]
    graph, x = captured(make(), *shape)
    expected = graph(x)[0]
    pairs = channel_pairs(graph)
    assert len(pairs) == count
    for pair in pairs:
        permute_channels(graph, pair, torch.randperm(pair.width, generator=torch.Generator().manual_seed(1)))
    assert relative(expected, graph(x)[0]) < 1e-5


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)),
        nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 8, 1), nn.ReLU(), nn.Conv1d(8, 8, 1, groups=2)),
    ],
    ids=["softmax", "norm", "groups"],
)
def test_what_mixes_channels_is_no_pair(module: nn.Module) -> None:
    graph, _ = captured(module, 2, 6)
    assert channel_pairs(graph) == ()


def test_a_second_reader_forbids_it() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.a(x))
            return self.b(y) + y

    graph, _ = captured(Two(), 2, 6)
    assert channel_pairs(graph) == ()


def spread_mlp() -> tuple[torch.fx.GraphModule, torch.Tensor]:
    graph, x = captured(nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 5)), 3, 6)
    with torch.no_grad():
        fetch(graph, "2.weight")[:, ::2] *= 20
    return graph, x


def test_sorting_lowers_the_error_of_groups() -> None:
    graph, x = spread_mlp()
    expected = graph(x)[0]
    report = sort_by_range(graph, QuantSpec(bits=4, symmetric=True, granularity=PerGroup(8)))
    (pair,) = report.sites
    assert pair.after < 0.8 * pair.before
    assert relative(expected, graph(x)[0]) < 1e-5


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 8), st.sampled_from([1, 4, 16, 32]))
def test_sorting_never_makes_it_worse(bits: int, size: int) -> None:
    graph, x = GRAPH
    state = {k: v.clone() for k, v in graph.state_dict().items()}
    expected = graph(x)[0]
    report = sort_by_range(graph, QuantSpec(bits=bits, symmetric=True, granularity=PerGroup(size)))
    assert all(p.after < p.before for p in report.sites)
    assert len(report.sites) + len(report.skipped) == 1
    assert relative(expected, graph(x)[0]) < 1e-5
    graph.load_state_dict(state)


GRAPH = spread_mlp()


def test_bad_orders_and_grids() -> None:
    graph, _ = spread_mlp()
    (pair,) = channel_pairs(graph)
    for order in (torch.arange(31), torch.zeros(32, dtype=torch.int64), torch.arange(1, 33)):
        with pytest.raises(UsageError, match="order") as caught:
            permute_channels(graph, pair, order)
        assert caught.value.code == "EQ-U262"
    with pytest.raises(UsageError, match="groups"):
        sort_by_range(graph, QuantSpec())
    report = sort_by_range(graph, QuantSpec(granularity=PerGroup(7)))
    assert not report.sites and "divide" in report.skipped[0].reason
