"""Smoothing: the same function, evener channels, and no place where it would not be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from edgeq.errors import UsageError
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.smooth import divisors, estimate, smooth, smoothing_tensors
from edgeq.metrics import sqnr_db
from edgeq.quant.uniform import fake_quantize, qparams_from_range
from edgeq.quant.weights import weight_qparams
from edgeq.spec import PerChannel, QuantSpec
from tests.unit.graph.transforms.small_models import Attention, Block, captured, relative
from tests.unit.graph.transforms.test_norm_sites import run_to

WEIGHT, ACTIVATION = QuantSpec(bits=8, symmetric=True, granularity=PerChannel(), narrow=True), QuantSpec(bits=8)


def statistics_for(graph: fx.GraphModule, x: Tensor) -> dict[str, ChannelStatistics]:
    axes = smoothing_tensors(graph)
    return channel_statistics(graph, list(axes), [(x,)], axes)


@settings(max_examples=5, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    how=st.sampled_from(["fused", "three", "heads-first"]),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 6),
    bias=st.booleans(),
    shift=st.booleans(),
    alpha=st.sampled_from(["auto", 0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_nothing_changes(
    how: str, heads: int, head_dim: int, bias: bool, shift: bool, alpha: float | Literal["auto"], seed: int
) -> None:
    width = heads * head_dim
    graph, x = captured(Block(how, width, heads, bias), 2, 4, width, seed=seed)
    expected = graph(x)[0]
    report = smooth(graph, statistics_for(graph, x), WEIGHT, ACTIVATION, alpha, shift)
    assert relative(expected, graph(x)[0]) < 1e-4
    gelu = [s for s in report.skipped if "gelu" in s.reason]
    assert [s.name for s in gelu] == ["fc2"]
    if alpha == "auto":
        assert all(s.after < s.before for s in report.sites)
    else:
        assert len(report.sites) == 3


PAIRS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)),
    "leaky": lambda: nn.Sequential(nn.Linear(6, 9, bias=False), nn.LeakyReLU(0.1), nn.Linear(9, 4, bias=False)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(6, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 4, 1)),
    "direct": lambda: nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_between_two_layers(name: str) -> None:
    shape = (2, 6, 5, 5) if name == "convolution" else (2, 5, 6)
    graph, x = captured(PAIRS[name](), *shape)
    expected = graph(x)[0]
    report = smooth(graph, statistics_for(graph, x), WEIGHT, ACTIVATION, 0.5, shift=True)
    assert len(report.sites) == 1 and not report.skipped
    assert relative(expected, graph(x)[0]) < 1e-5


@pytest.mark.parametrize("kind", [nn.GELU, nn.SiLU, nn.ReLU6, nn.Sigmoid])
def test_curved_functions_are_not_smoothed(kind: type[nn.Module]) -> None:
    graph, x = captured(nn.Sequential(nn.Linear(6, 9), kind(), nn.Linear(9, 4)), 2, 6)
    report = smooth(graph, statistics_for(graph, x), WEIGHT, ACTIVATION, 0.5)
    assert not report.sites
    assert "does not pass" in report.skipped[0].reason


def test_a_shift_zeroes_the_means_of_norms_and_values() -> None:
    graph, x = captured(Block("fused", 12, 3), 2, 5, 12)
    smooth(graph, statistics_for(graph, x), WEIGHT, ACTIVATION, 0.5, shift=True)
    again = statistics_for(graph, x)
    assert len(again) == 3
    for seen in again.values():
        assert float((seen.mean.abs() / seen.absmax).max()) < 1e-5


def test_alpha_1_makes_all_channels_equal() -> None:
    graph, x = captured(Block("three", 12, 3), 2, 5, 12)
    smooth(graph, statistics_for(graph, x), WEIGHT, ACTIVATION, 1.0)
    for seen in statistics_for(graph, x).values():
        torch.testing.assert_close(seen.absmax, seen.absmax[:1].expand_as(seen.absmax), rtol=1e-5, atol=0)


def test_shared_values_are_skipped() -> None:
    graph, x = captured(Attention("shared-key"), 1, 5, 8)
    report = smooth(graph, statistics_for(graph, x), WEIGHT, ACTIVATION, 0.5)
    assert not report.sites
    assert "share" in report.skipped[0].reason


def test_outliers_cost_less_after_smoothing() -> None:
    graph, x = captured(Block("fused", 16, 2), 2, 30, 16)
    with torch.no_grad():
        fetch(graph, "norm2.weight")[3] = 60
        fetch(graph, "fc1.weight")[:, 3] /= 60
    before = {"x": run_to(graph, "norm2", x), "w": fetch(graph, "fc1.weight").clone()}
    report = smooth(graph, statistics_for(graph, x), WEIGHT, ACTIVATION)
    after = {"x": run_to(graph, "norm2", x), "w": fetch(graph, "fc1.weight")}
    site = next(s for s in report.sites if s.tensor == "norm2")
    assert site.after < site.before / 10
    scores = []
    for tensors in (before, after):
        x_grid = qparams_from_range(float(tensors["x"].min()), float(tensors["x"].max()), ACTIVATION)
        quantized = (
            fake_quantize(tensors["x"], x_grid) @ fake_quantize(tensors["w"], weight_qparams(tensors["w"], WEIGHT)).T
        )
        scores.append(sqnr_db((before["x"] @ before["w"].T).numpy(), quantized.numpy()))
    assert scores[1] > scores[0] + 10


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 999))
def test_the_estimate_follows_the_measured_error(width: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, width, generator=generator) * torch.exp(torch.randn(width, generator=generator))
    w = torch.randn(outputs, width, generator=generator)
    graph = fx.symbolic_trace(nn.Sequential(nn.Identity()))
    name = next(n.name for n in graph.graph.nodes if n.op == "placeholder")
    seen = channel_statistics(graph, [name], [(x,)])[name]
    zero, one = torch.zeros(width).double(), torch.ones(width).double()
    predicted = estimate(seen, [w], zero, one, WEIGHT, ACTIVATION)
    grid = qparams_from_range(float(x.min()), float(x.max()), ACTIVATION)
    error = fake_quantize(x, grid) @ fake_quantize(w, weight_qparams(w, WEIGHT)).T - x @ w.T
    measured = float(error.double().square().sum() / 4000)
    assert 0.5 < predicted / measured < 2
    assert float(divisors(seen, [w], zero, 0.5).log().mean()) == pytest.approx(0, abs=1e-9)


def test_bad_settings_and_missing_statistics() -> None:
    graph, _ = captured(Block("fused", 8, 2), 1, 4, 8)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="alpha") as caught:
            smooth(graph, {}, WEIGHT, ACTIVATION, alpha)
        assert caught.value.code == "EQ-U263"
    report = smooth(graph, {}, WEIGHT, ACTIVATION)
    assert not report.sites
    assert sum("statistics" in s.reason for s in report.skipped) == 3
    wrong = dict.fromkeys(smoothing_tensors(graph), ChannelStatistics(*[torch.ones(3)] * 5))
    with pytest.raises(UsageError, match="channels"):
        smooth(graph, wrong, WEIGHT, ACTIVATION)
