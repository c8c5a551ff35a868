"""Balanced channels around SiLU: the same function, exact factors, and grids that fit better, in the file too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeq.devices.litert import LiteRtModel
from edgeq.exporters import get_exporter
from edgeq.graph.bounds import bounds_of
from edgeq.graph.capture import capture
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.graph.rewrite import aten, calls, constant_of
from edgeq.graph.transforms.convolution import SATURATED, balance_channels, fit_convolution, uneven_tensors
from edgeq.metrics import sqnr_db
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.spec import Precision
from tests.unit.graph.transforms.small_models import relative

FEW = settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


class Detector(nn.Module):
    """Every way on which a scale passes, and two on which it does not; random weights, channels 1 : 200 apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.left, self.right = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1, bias=False)
        self.grouped = nn.Conv2d(12, 6, 3, groups=3)
        self.added, self.read = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)
        for layer in (self.stem, self.depthwise, self.left, self.right, self.grouped):
            with torch.no_grad():
                layer.weight *= torch.logspace(-1.0, 1.3, layer.out_channels).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.silu(self.depthwise(functional.silu(self.stem(x))))
        left, right = functional.silu(self.left(x)), functional.silu(self.right(x))
        small = functional.interpolate(functional.max_pool2d(left, 2), scale_factor=2.0)
        joined = functional.silu(self.grouped(torch.cat([right, small, right], 1)))
        return self.read(joined), functional.silu(self.added(joined.relu())) + 1.0


class Residual(nn.Module):
    """Channels that are split, added to what layers make of them, and joined, as in YOLOv8; random weights."""

    def __init__(self, *, outlet: bool = False) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 12, 1)
        self.inner, self.back = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.read = nn.Conv2d(18, 2, 1)
        self.outlet = outlet
        for layer in (self.wide, self.back):
            with torch.no_grad():
                layer.weight *= torch.logspace(-1.0, 1.3, layer.out_channels).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        kept, passed = functional.silu(self.wide(x)).chunk(2, 1)
        added = passed + functional.silu(self.back(functional.silu(self.inner(passed))))
        read = self.read(torch.cat([kept, passed, added], 1))
        return (read, added[:, :2]) if self.outlet else (read,)


def detector(seed: int) -> tuple[fx.GraphModule, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(1, 3, 8, 8)
    return get_exporter("tflite").prepare(capture(Detector().eval(), (x,))), x


def quantized(graph: fx.GraphModule, x: Tensor) -> Legalized:
    rules = get_exporter("tflite").rules
    config, placement = place_scheme(graph, get_exporter("tflite"), "integer", Precision(observer="mse"))
    statistics = calibrate(graph, sorted(observed(graph, placement)), [(x,)])
    return legalize(graph, placement, config, rules, statistics, "integer")


@FEW
@given(seed=st.integers(0, 1000))
def test_balancing_keeps_the_function(seed: int) -> None:
    graph, x = detector(seed)
    fitted, applied = fit_convolution(graph, lambda: iter([(x,)]))
    for before, after in zip(graph(x), fitted(x), strict=True):
        assert relative(before, after) < 5e-5
    assert applied[0].sites == 5, "stem, depthwise, left, right, grouped"
    reasons = " ".join(s.reason for s in applied[0].skipped)
    assert len(applied[0].skipped) == 1 and "add" in reasons
    factors = [v for n in calls(fitted, aten.mul.Tensor) if (v := constant_of(fitted, n.args[1])) is not None]
    assert len(factors) == 5
    for factor in factors:
        assert torch.equal((255 * factor).round() / 255, factor), "an 8-bit grid holds it exactly"
        assert 0 < float(factor.min()) < 0.2 and float(factor.max()) == 1


def test_channels_that_are_added_have_one_factor() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    graph = get_exporter("tflite").prepare(capture(Residual().eval(), (x,)))
    fitted, (applied,) = fit_convolution(graph, lambda: iter([(x,)]))
    assert relative(graph(x)[0], fitted(x)[0]) < 5e-5
    assert (applied.sites, applied.skipped) == (3, ())
    found = [constant_of(fitted, n.args[1]) for n in calls(fitted, aten.mul.Tensor)]
    wide, _, back = (v.flatten() for v in found if v is not None)
    assert torch.equal(wide[6:], back), "halves that are not added have factors of their own"
    truth = graph(x)[0].detach().numpy()
    before, after = (sqnr_db(truth, quantized(g, x).simulation(x)[0].detach().numpy()) for g in (graph, fitted))
    assert after > before + 3


def test_channels_that_are_put_out_keep_their_scale() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    graph = get_exporter("tflite").prepare(capture(Residual(outlet=True).eval(), (x,)))
    fitted, (applied,) = fit_convolution(graph, lambda: iter([(x,)]))
    for before, after in zip(graph(x), fitted(x), strict=True):
        assert relative(before, after) < 5e-5
    assert applied.sites == 3
    found = [constant_of(fitted, n.args[1]) for n in calls(fitted, aten.mul.Tensor)]
    wide, _, back = (v.flatten() for v in found if v is not None)
    assert torch.equal(wide[6:8], torch.ones(2)) and torch.equal(back[:2], torch.ones(2))
    assert float(wide[8:].min()) < 1


def test_no_value_that_counts_leaves_the_bounds() -> None:
    graph, x = detector(1)
    axes = uneven_tensors(graph)
    fitted, _ = fit_convolution(graph, lambda: iter([(x,)]))
    seen: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                seen[n.name] = value
            return value

    with torch.no_grad():
        Watch(fitted).run(x)
    nodes = {n.name: n for n in fitted.graph.nodes}
    for name in axes:
        bounds = bounds_of(nodes[name])
        assert bounds is not None
        assert float(seen[name].max()) <= bounds.high * (1 + 1e-6)
        gate = next(n for n in nodes[name].users if any(u.target is aten.sigmoid.default for u in n.users))
        below = seen[name] < bounds.low * (1 + 1e-6)
        assert float(seen[gate.name][below].max() if below.any() else -SATURATED) <= -SATURATED * (1 - 1e-5)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.ReLU(), nn.Identity()], ids=["silu", "relu", "none"])
def test_quiet_channels_get_codes(activation: nn.Module) -> None:
    torch.manual_seed(2)
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=8)
    loudness = torch.logspace(-1.5, 1.5, 8).reshape(-1, 1, 1, 1)
    with torch.no_grad():  # the second layer brings all channels to one loudness: each counts alike
        first.weight *= loudness
        second.weight.copy_(1 / loudness)
    x = torch.randn(1, 3, 16, 16)
    graph = get_exporter("tflite").prepare(capture(nn.Sequential(first, activation, second).eval(), (x,)))
    fitted, _ = fit_convolution(graph, lambda: iter([(x,)]))
    truth, before, after = (
        g(x)[0].detach().numpy() for g in (graph, quantized(graph, x).simulation, quantized(fitted, x).simulation)
    )
    assert sqnr_db(truth, after) > 10 + sqnr_db(truth, before)


def test_the_file_computes_what_the_simulation_says(tmp_path: Path) -> None:
    graph, x = detector(3)
    fitted, _ = fit_convolution(graph, lambda: iter([(x,)]))
    legalized = quantized(fitted, x)
    exporter = get_exporter("tflite")
    exporter.emit(legalized.emission, (x,), legalized.plan, tmp_path / "model.tflite")
    assert exporter.read_back(tmp_path / "model.tflite", legalized).missing == ()
    model = LiteRtModel(tmp_path / "model.tflite")
    assert all(t.startswith("int8") for op in model.ops if op.name in ("MUL", "LOGISTIC") for t in op.input_types)
    for simulated, found in zip(legalized.simulation(x), model.run(x.numpy()), strict=True):
        assert sqnr_db(simulated.detach().numpy(), found) > 30, "a code here and there"


class Plain(nn.Module):
    """ReLUs, a linear bottleneck, a residual sum and a classifier; with `even` all channels reach alike."""

    def __init__(self, *, even: bool) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.narrow, self.wide, self.back = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            for layer in (self.stem, self.deep, self.narrow, self.wide, self.back):
                bare = layer.weight.abs().sum((1, 2, 3), keepdim=True)
                layer.weight /= bare
                if not even:
                    layer.weight *= torch.logspace(-2.0, 0.5, layer.out_channels).reshape(-1, 1, 1, 1)
                assert layer.bias is not None
                layer.bias.fill_(1e-4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(torch.relu(self.deep(torch.relu(self.stem(x)))))
        x = x + self.back(torch.relu(self.wide(x)))
        found: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return found


def plain(*, even: bool) -> tuple[fx.GraphModule, Tensor]:
    torch.manual_seed(5)
    model, x = Plain(even=even).eval(), torch.randn(1, 3, 16, 16)
    return get_exporter("tflite").prepare(capture(model, (x,))), x


def test_channels_around_relu_are_evened_out_for_nothing() -> None:
    graph, x = plain(even=False)
    fitted, (applied,) = fit_convolution(graph, lambda: iter([(x,)]))
    assert applied.sites == 5 and not applied.skipped
    assert relative(graph(x)[0], fitted(x)[0]) < 2e-5
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [
        n.target for n in fitted.graph.nodes if n.op == "call_function"
    ], "no operation more"


def test_what_is_added_shares_its_factors() -> None:
    graph, x = plain(even=False)
    fitted, _ = fit_convolution(graph, lambda: iter([(x,)]))
    biases = [{n.name: constant_of(g, n.args[2]) for n in calls(g, aten.conv2d.default)} for g in (graph, fitted)]
    ratios = []
    for name in ("narrow", "back"):  # the outputs of both go into one sum
        before, after = (found[name] for found in biases)
        assert before is not None and after is not None
        ratios.append(after / before)
    torch.testing.assert_close(*ratios)
    assert float(ratios[0].max()) > 5 and float(ratios[0].min()) == 1


def test_even_channels_and_nothing_to_balance_are_the_graph_itself() -> None:
    graph, x = plain(even=True)
    assert fit_convolution(graph, lambda: iter([(x,)])) == (graph, ())
    flat = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), (torch.randn(1, 3),))
    assert fit_convolution(flat, lambda: iter(())) == (flat, ())


def test_a_clip_stops_scales() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight *= torch.logspace(-2, 0.5, 8).reshape(-1, 1, 1, 1)  # type: ignore[operator]
    x = torch.randn(1, 3, 6, 6)
    graph = capture(model, (x,))
    assert fit_convolution(graph, lambda: iter([(x,)])) == (graph, ())


def test_without_statistics_a_layer_is_left_alone() -> None:
    graph, x = detector(0)
    expected = graph(x)[0]
    report = balance_channels(graph, {})
    assert report.sites == () and len(report.skipped) == 6
    assert torch.equal(graph(x)[0], expected)


@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_dead_channels_are_no_fault(scale: float) -> None:
    torch.manual_seed(0)
    model, x = Detector(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        model.stem.weight[2] *= scale
        assert model.stem.bias is not None
        model.stem.bias[2] *= scale
    graph = get_exporter("tflite").prepare(capture(model.eval(), (x,)))
    fitted, _ = fit_convolution(graph, lambda: iter([(x,)]))
    assert relative(graph(x)[0], fitted(x)[0]) < 5e-5
