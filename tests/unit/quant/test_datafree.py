"""Distilled inputs match what batch norms remember, and give ranges near those of real data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeq.errors import ModelError, UsageError
from edgeq.quant.calibrator import calibrate
from edgeq.quant.datafree import distill_inputs, statistics_distance

SHAPE = (3, 16, 16)


def photos(n: int, seed: int) -> Tensor:
    """Smooth, strongly correlated colours of mean 0 and deviation 1: unlike white noise."""
    noise = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    smooth = functional.avg_pool2d(functional.pad(noise, (2, 2, 2, 2), mode="circular"), 5, 1)
    return smooth * 1.5 + smooth.mean(1, keepdim=True) * 7.2


def network() -> nn.Sequential:
    """Three convolutions whose batch norms have seen `photos`."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 16)):
        norm = nn.BatchNorm2d(outputs, momentum=None)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        parts += [nn.Conv2d(inputs, outputs, 3, stride=1 + (inputs == 8), bias=False), norm, nn.ReLU()]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        for seed in range(8):
            net(photos(32, seed))
    return net.eval()


def highs(net: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Largest output of each rectifier."""
    return {name: s.high for name, s in calibrate(fx.symbolic_trace(net), ["_2", "_5", "_8"], [(inputs,)]).items()}


def test_statistics_and_ranges_come_near_those_of_real_data() -> None:
    net, ticks = network(), []
    found = distill_inputs(net, SHAPE, iterations=60, progress=ticks.append)
    assert found.inputs.shape == (32, *SHAPE)
    assert not found.inputs.requires_grad
    assert found.after <= found.before / 10
    assert found.after <= statistics_distance(net, photos(32, 50))
    assert found.after == pytest.approx(statistics_distance(net, found.inputs), rel=1e-4)
    assert sum(ticks) == 60
    real, distilled = highs(net, photos(128, 60)), highs(net, found.inputs)
    noise = highs(net, torch.randn(128, *SHAPE, generator=torch.Generator().manual_seed(1)))
    for name, high in real.items():
        # means and variances say little of tails: the band is wide, and narrower than what noise gives
        assert 0.7 <= distilled[name] / high <= 1.4, name
    assert not all(0.7 <= noise[name] / high <= 1.4 for name, high in real.items())


def test_the_network_is_left_as_it_was() -> None:
    net = network().train()
    net[1].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    distill_inputs(net, SHAPE, count=4, iterations=2)
    assert net.training
    assert not net[1].training
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(part._forward_pre_hooks for part in net)


def test_the_seed_decides() -> None:
    net = network()
    first, again, other = (distill_inputs(net, SHAPE, count=4, iterations=3, seed=s).inputs for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_iterations_never_end_worse_than_they_began() -> None:
    net = network()
    found = distill_inputs(net, SHAPE, count=2, iterations=1)
    assert found.after <= found.before


def test_classes_make_the_network_confident() -> None:
    net = network()

    def surprise(inputs: Tensor) -> float:
        with torch.no_grad():
            return float(functional.cross_entropy(net(inputs), torch.arange(len(inputs)) % 5))

    plain = distill_inputs(net, SHAPE, count=10, iterations=40)
    aimed = distill_inputs(net, SHAPE, count=10, iterations=40, class_weight=0.1)
    assert surprise(aimed.inputs) < 0.8 * surprise(plain.inputs)
    assert aimed.after < aimed.before


def test_graphs_do_as_well_as_modules() -> None:
    net = network()
    expected = statistics_distance(net, photos(4, 0))
    traced = fx.symbolic_trace(net)
    exported = torch.export.export(net, (torch.zeros(4, *SHAPE),)).module()
    assert isinstance(exported, fx.GraphModule)
    for graph in (traced, exported):
        assert statistics_distance(graph, photos(4, 0)) == pytest.approx(expected, rel=1e-5)
    found = distill_inputs(exported, SHAPE, count=4, iterations=30)
    assert found.after <= found.before / 10


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3))),
    ],
)
def test_networks_without_batch_norms_are_refused(net: nn.Module) -> None:
    with pytest.raises(ModelError, match="only for networks with batch norms") as caught:
        distill_inputs(net, (3,))
    assert caught.value.code == "EQ-M240"


def test_vectors_work_as_well() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, momentum=None))
    with torch.no_grad():
        net(torch.randn(500, 3))
    found = distill_inputs(net, (3,), iterations=40)
    assert found.after <= found.before / 10


@pytest.mark.parametrize(
    ("shape", "count", "iterations", "class_weight"),
    [
        ((), 2, 1, 0.0),
        ((3, 0), 2, 1, 0.0),
        ((3,), 1, 1, 0.0),
        ((3,), 2, 0, 0.0),
        ((3,), 2, 1, -1.0),
        ((3,), 2, 1, math.nan),
    ],
)
def test_impossible_options_are_refused(
    shape: tuple[int, ...], count: int, iterations: int, class_weight: float
) -> None:
    with pytest.raises(UsageError) as caught:
        distill_inputs(network(), shape, count=count, iterations=iterations, class_weight=class_weight)
    assert caught.value.code == "EQ-U245"


def test_networks_that_cannot_be_run_are_refused() -> None:
    net = network()
    with pytest.raises(ModelError, match=r"cannot take inputs of shape \(4, 5, 16, 16\)") as caught:
        distill_inputs(net, (5, 16, 16), count=4, iterations=1)
    assert caught.value.code == "EQ-M245"
    with pytest.raises(ModelError, match="no classes") as classless:
        distill_inputs(net[:3], SHAPE, count=4, iterations=1, class_weight=1.0)
    assert classless.value.code == "EQ-M243"
    net[1].running_mean[0] = math.nan
    with pytest.raises(ModelError, match="not finite"):
        distill_inputs(net, SHAPE, count=4, iterations=1)
