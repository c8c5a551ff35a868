"""Weights of a whole graph rounded in order: better than nearest, on what the layers before really deliver."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeq.errors import DataError, ModelError
from edgeq.exporters import get_exporter
from edgeq.graph import solve
from edgeq.graph.capture import capture
from edgeq.graph.layers import layer_fidelity
from edgeq.graph.legalize import Legalized, dynamic_fake_quantize, legalize, observed
from edgeq.graph.placement import weight_of
from edgeq.graph.rewrite import aten, calls, fetch
from edgeq.graph.solve import Inputs, Rounding, Solved, attention_received, solve_weights
from edgeq.metrics import sqnr_db
from edgeq.quant.calibrator import calibrate
from edgeq.quant.rounding import ROUNDERS
from edgeq.quant.uniform import dequantize, quantize
from edgeq.quant.weights import weight_qparams
from edgeq.recipe import place_scheme
from edgeq.spec import PerChannel, Precision, QParams, QuantSpec
from tests.unit.graph.transforms.small_models import captured
from tests.unit.graph.transforms.small_vits import TOKENS, Form, images, vit

SEEDS = (2, 4, 5)  # one network with random weights says little
Samples = list[tuple[Tensor, ...]]


class Net(nn.Module):
    """Convolution, depthwise convolution, and two linears of which one runs twice."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=bias)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias)
        self.twice = nn.Linear(8, 8, bias=bias)
        self.head = nn.Linear(8, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depth(torch.relu(self.stem(x)))).flatten(2).transpose(1, 2)
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.head(x.mean(1))


def four_bits(layer: str, weight: Tensor, bias: Tensor | None, bits: int = 4) -> QParams:
    """A grid per output channel."""
    return weight_qparams(weight, QuantSpec(bits, True, PerChannel(0), "mse", narrow=True))


def layers_of(graph: fx.GraphModule) -> dict[str, str]:
    """Every linear and convolution with the path of its weight."""
    found = calls(graph, aten.linear.default, aten.conv2d.default)
    return {n.name: weight_of(n) or "" for n in found}


def solved(
    graph: fx.GraphModule, samples: Samples, name: str = "gptq", **options: Any
) -> tuple[fx.GraphModule, dict[str, Solved]]:
    """The graph with rounded weights and exact activations."""
    quantized = copy.deepcopy(graph)
    rounding = Rounding(name, lambda: samples, **options)
    results = solve_weights(graph, quantized, layers_of(graph), four_bits, rounding)
    quantized.recompile()
    return quantized, results


def output_error(graph: fx.GraphModule, quantized: fx.GraphModule, samples: Samples) -> float:
    with torch.no_grad():
        return sum(float((graph(*x)[0] - quantized(*x)[0]).square().sum()) for x in samples)


@dataclass
class Spy:
    """What each layer was rounded on."""

    inputs: dict[str, Inputs] = field(default_factory=dict)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    seen, real = Spy(), solve._solve

    def watched(graph: fx.GraphModule, node: fx.Node, inputs: Inputs, *rest: Any) -> Solved:
        seen.inputs[node.name] = Inputs(*([t.clone() for t in part] for part in vars(inputs).values()))
        return real(graph, node, inputs, *rest)

    monkeypatch.setattr(solve, "_solve", watched)
    return seen


def layer_inputs(graph: fx.GraphModule, x: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What each layer of a graph reads."""
    values: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.target in (aten.linear.default, aten.conv2d.default):
                values[n.name] = self.fetch_args_kwargs_from_env(n)[0][0]
            return super().run_node(n)

    with torch.no_grad():
        Watch(graph).run(*x)
    return values


@pytest.mark.parametrize("name", ["gptq", "coordinate", "erq"])
def test_rounding_in_order_beats_nearest_on_other_inputs(name: str) -> None:
    ratios = []
    for seed in SEEDS:
        graph, _ = vit(Form(width=16, heads=2, depth=2, end="token", token="before"), seed)
        samples, held_out = images(24, 50 + seed), images(12, 900 + seed)
        nearest, _ = solved(graph, samples, "nearest", retarget=False)
        better, _ = solved(graph, samples, name)
        ratios.append(output_error(graph, better, held_out) / output_error(graph, nearest, held_out))
    assert math.prod(ratios) ** (1 / len(ratios)) < 0.8


@pytest.mark.parametrize("name", ROUNDERS)
def test_every_rounder_rounds_a_graph(name: str) -> None:
    graph, _ = captured(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), 1, 10, 6)
    generator = torch.Generator().manual_seed(3)
    samples: Samples = [(torch.randn((1, 10, 6), generator=generator),) for _ in range(8)]
    quantized, results = solved(graph, samples, name)
    nearest, _ = solved(graph, samples, "nearest", retarget=False)
    assert set(results) == set(layers_of(graph))
    assert output_error(graph, quantized, samples) < 1.1 * output_error(graph, nearest, samples)
    assert not any(p.requires_grad for p in quantized.parameters())


@pytest.mark.parametrize("name", [n for n, r in ROUNDERS.items() if r.moves_grid])
def test_moved_grids_leave_room_for_the_bias(name: str) -> None:
    graph, _ = captured(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), 1, 10, 8)
    with torch.no_grad():
        fetch(graph, "2.weight").mul_(2e-5)
        fetch(graph, "2.bias").fill_(40)
    generator = torch.Generator().manual_seed(0)
    samples: Samples = [(torch.randn((1, 10, 8), generator=generator) + 1,) for _ in range(16)]
    result = legalized(graph, "integer", Precision(8, 8), samples, name)
    layers, nodes = layers_of(graph), {n.name: n for n in result.emission.graph.nodes}
    originals = {n.name: n for n in graph.graph.nodes}
    for layer, path in layers.items():
        bias = fetch(result.emission, str(nodes[layer].args[2].target)).double()
        scale = float(result.plan.tensors[originals[layer].args[0].name].uniform.scale)
        steps = bias / (scale * torch.from_numpy(result.plan.tensors[path].uniform.scale).double())
        assert float(steps.abs().max()) < 1.001 * 2**30
    notes = {t.name: t.rounding for t in result.plan.weights()}
    assert "no room for the bias" in notes["2.weight"]
    assert notes["0.weight"].startswith(name)


def test_retargeting_pays_over_several_networks() -> None:
    ratios = []
    for seed in SEEDS:
        graph, _ = vit(Form(width=16, heads=2, depth=2, end="token", token="before"), seed)
        samples, held_out = images(24, 50 + seed), images(12, 900 + seed)
        errors = [output_error(graph, solved(graph, samples, retarget=r)[0], held_out) for r in (True, False)]
        ratios.append(errors[0] / errors[1])
    assert math.prod(ratios) ** (1 / len(ratios)) < 0.85, ratios


@pytest.mark.parametrize("bias", [True, False])
def test_each_layer_is_rounded_on_what_the_layers_before_deliver_in_the_end(spy: Spy, bias: bool) -> None:
    graph, _ = captured(Net(bias), 1, 3, 8, 8)
    samples = images(6)
    quantized, results = solved(graph, samples)
    moved = [r for r in results.values() if r.bias is not None and bool(r.bias.any())]
    assert len(moved) >= 3  # so that a bias left behind would be seen
    for i, x in enumerate(samples):
        exact, final = layer_inputs(graph, x), layer_inputs(quantized, x)
        for name, seen in spy.inputs.items():
            torch.testing.assert_close(seen.exact[i], exact[name], rtol=0, atol=0)
            torch.testing.assert_close(seen.rough[i], final[name], rtol=0, atol=0)


def test_biases_make_the_mean_of_each_output_exact() -> None:
    graph, _ = captured(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), 1, 10, 6)
    generator = torch.Generator().manual_seed(3)
    samples: Samples = [(torch.randn((1, 10, 6), generator=generator) + 1,) for _ in range(8)]
    quantized, results = solved(graph, samples)
    assert all(r.bias is not None for r in results.values())
    with torch.no_grad():
        means = [torch.stack([g(*x)[0] for x in samples]).mean((0, 1, 2)) for g in (graph, quantized)]
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=2e-3)
    plain, _ = solved(graph, samples, "nearest", retarget=False)
    for name, result in results.items():
        layer = {n.name: n for n in quantized.graph.nodes}[name]
        assert result.bias is not None
        assert torch.equal(fetch(quantized, str(layer.args[2].target)), result.bias)
    assert output_error(graph, quantized, samples) < output_error(graph, plain, samples)


def test_codes_weights_and_grids_agree() -> None:
    graph, _ = captured(Net(), 1, 3, 8, 8)
    quantized, results = solved(graph, images(6))
    for name, path in layers_of(graph).items():
        if name in results:
            result = results[name]
            weight = fetch(quantized, path)
            assert result.codes.dtype == torch.int32
            assert result.codes.shape == weight.shape
            assert int(result.codes.abs().max()) <= 7
            assert torch.equal(dequantize(result.codes, result.qparams), weight)


def test_the_float_graph_is_untouched() -> None:
    graph, x = captured(Net(), 1, 3, 8, 8)
    before, expected = {k: v.clone() for k, v in graph.state_dict().items()}, graph(x)[0]
    solved(graph, images(4))
    assert all(torch.equal(before[k], v) for k, v in graph.state_dict().items())
    assert torch.equal(graph(x)[0], expected)


def test_a_shared_weight_is_rounded_once_for_all_its_readers(spy: Spy) -> None:
    graph, _ = captured(Net(), 1, 3, 8, 8)
    layers, ticks = layers_of(graph), []
    assert list(layers.values()).count("twice.weight") == 2
    quantized, results = solved(graph, images(6), advance=ticks.append)
    first, second = (n for n, path in layers.items() if path == "twice.weight")
    assert first in results
    assert second not in results
    assert list(spy.inputs) == list(results) == [n for n in layers if n != second]
    assert ticks == [1] * len(layers)
    readers = {n.name: n for n in quantized.graph.nodes}
    assert len({str(readers[n].args[1].target) for n in (first, second)}) == 1


def test_a_grouped_convolution_takes_the_nearest_codes_and_says_so() -> None:
    graph, _ = captured(Net(), 1, 3, 8, 8)
    _, results = solved(graph, images(6))
    grouped = results["depth"]
    assert grouped.note == "nearest: a grouped convolution"
    weight = fetch(graph, "depth.weight")
    assert torch.equal(grouped.codes, quantize(weight, four_bits("depth", weight, None)))
    assert all(r.note.startswith("gptq") for n, r in results.items() if n != "depth")


def test_the_same_data_gives_the_same_codes() -> None:
    graph, _ = captured(Net(), 1, 3, 8, 8)
    first, second = (solved(graph, images(6))[1] for _ in range(2))
    other = solved(graph, images(6, seed=1))[1]
    for name, result in first.items():
        assert torch.equal(result.codes, second[name].codes)
        assert result.qparams == second[name].qparams
        assert result.note == second[name].note
        assert (result.bias is None) == (second[name].bias is None)
        assert result.bias is None or torch.equal(result.bias, second[name].bias)
    assert any(not torch.equal(first[n].codes, other[n].codes) for n in first)


def test_the_grid_follows_a_weight_that_was_moved() -> None:
    graph, _ = captured(Net(), 1, 3, 8, 8)
    asked: dict[str, list[Tensor]] = {}

    def grid(layer: str, weight: Tensor, bias: Tensor | None) -> QParams:
        asked.setdefault(layer, []).append(weight.clone())
        return four_bits(layer, weight, bias)

    for retarget in (True, False):
        asked.clear()
        rounding = Rounding("gptq", lambda: images(6), retarget=retarget)
        results = solve_weights(graph, copy.deepcopy(graph), layers_of(graph), grid, rounding)
        assert {n: len(w) for n, w in asked.items()} == dict.fromkeys(results, 1)
        for name, (weight,) in asked.items():
            assert weight.shape == results[name].codes.shape
            assert results[name].qparams == four_bits(name, weight, None)


def test_a_convolution_is_seen_as_its_patches() -> None:
    """The rows of `_rows` times the flat weight are the convolution, whatever its stride, padding and dilation."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 9, 9)
    for options in ({}, {"stride": 2}, {"padding": 1}, {"dilation": 2, "padding": 2}, {"stride": (2, 3)}):
        module = nn.Conv2d(3, 5, (3, 2), **options)
        (node,) = calls(capture(module.eval(), (x,)), aten.conv2d.default)
        rows = solve._rows(node, module.weight, x)
        expected = module(x).flatten(2)[0].T - module.bias
        torch.testing.assert_close(rows @ module.weight.flatten(1).T, expected, rtol=1e-4, atol=1e-5)


def test_rows_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = captured(Net(), 1, 3, 8, 8)
    counts: dict[int, int] = {}
    real = solve._moments

    def counted(node: fx.Node, weight: Tensor, inputs: Inputs) -> Any:
        moments = real(node, weight, inputs)
        counts[weight[0].numel()] = moments.rows
        return moments

    monkeypatch.setattr(solve, "_moments", counted)
    solved(graph, images(8))
    assert counts == {27: 8 * 16, 8: 8}
    monkeypatch.setattr(solve, "MAX_ROWS", 32)
    solved(graph, images(8))
    assert counts[27] == 8 * 4


def test_tokens_count_by_the_attention_they_received(spy: Spy) -> None:
    graph, _ = vit(Form(depth=2, token="before", end="mean"))
    samples = images(5)
    solved(graph, samples)
    assert spy.inputs["stem"].weights == spy.inputs["blocks_0_attn_qkv"].weights == []
    for name in ("blocks_0_attn_proj", "blocks_0_fc1", "blocks_1_attn_qkv", "blocks_1_fc2", "head"):
        weights = spy.inputs[name].weights
        assert [tuple(w.shape) for w in weights] == [(TOKENS + 1,)] * len(samples)
        assert all(float(w.min()) >= 1 and float(w.mean()) == pytest.approx(2, rel=1e-4) for w in weights)
    assert not torch.equal(spy.inputs["blocks_0_fc1"].weights[0], spy.inputs["blocks_1_fc1"].weights[0])


def test_weights_of_tokens_reach_the_moments_where_the_rows_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = vit(Form(token="before"))
    masses: list[tuple[int, float]] = []
    real = solve._moments

    def watched(node: fx.Node, weight: Tensor, inputs: Inputs) -> Any:
        moments = real(node, weight, inputs)
        masses.append((moments.rows, moments.total.mass))
        return moments

    monkeypatch.setattr(solve, "_moments", watched)
    solved(graph, images(5))
    tokens = 5 * (TOKENS + 1)
    rows = [5 * TOKENS, tokens, tokens, tokens, tokens, 5]
    assert [r for r, _ in masses] == rows
    assert [m for _, m in masses] == pytest.approx([5 * TOKENS, tokens, 2 * tokens, 2 * tokens, 2 * tokens, 5])


def test_attention_received_is_relative_to_an_even_share() -> None:
    even = torch.full((1, 2, 3, 4), 0.25)
    torch.testing.assert_close(attention_received(even), torch.full((4,), 2.0))
    first = torch.zeros(2, 3, 4)
    first[..., 0] = 1
    torch.testing.assert_close(attention_received(first), torch.tensor([5.0, 1, 1, 1]))


def test_no_samples_is_an_error() -> None:
    graph, _ = captured(Net(), 1, 3, 8, 8)
    with pytest.raises(DataError) as caught:
        solved(graph, [])
    assert caught.value.code == "EQ-D300"


class Quotient(nn.Module):
    """Divides by what a ReLU lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(1 / torch.relu(self.first(x)))


@pytest.mark.parametrize("which", [0, 3])
def test_a_network_that_breaks_once_quantized_is_named(which: int) -> None:
    graph, _ = captured(Quotient(), 1, 5, 4)
    with torch.no_grad():
        fetch(graph, "first.bias").fill_(50)
    samples: Samples = [(torch.randn(1, 5, 4),) for _ in range(4)]
    quantized = copy.deepcopy(graph)
    (relu,) = calls(quantized, aten.relu.default)
    seen = iter(range(4))
    relu.target = lambda x: x * 0 if next(seen) == which else x
    with pytest.raises(ModelError) as caught:
        solve_weights(graph, quantized, layers_of(graph), four_bits, Rounding("gptq", lambda: samples))
    assert caught.value.code == "EQ-M301"
    assert caught.value.place not in ("first", "last")


def test_infinite_masks_are_no_fault() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
            return self.last((x @ x.transpose(1, 2)).masked_fill(hidden, -torch.inf).softmax(-1) @ x)

    graph, _ = captured(Masked(), 1, 5, 4)
    _, results = solved(graph, [(torch.randn(1, 5, 4),) for _ in range(4)])
    assert set(results) == {"first", "last"}


def test_several_inputs_are_told_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + functional.relu(self.b(y))

    graph = capture(Two().eval(), (torch.randn(1, 4), torch.randn(1, 6)))
    samples: Samples = [(torch.randn(1, 4), torch.randn(1, 6)) for _ in range(8)]
    quantized, results = solved(graph, samples)
    assert {n: tuple(r.codes.shape) for n, r in results.items()} == {"a": (3, 4), "b": (3, 6)}
    assert output_error(graph, quantized, samples) > 0


# Through legalize, with quantized activations.


def legalized(
    graph: fx.GraphModule, scheme: str, precision: Precision, samples: Samples, name: str | None
) -> Legalized:
    exporter = get_exporter("tflite")
    config, placement = place_scheme(graph, exporter, scheme, precision)
    watched = observed(graph, placement)
    statistics = calibrate(graph, watched, iter(samples)) if watched else {}
    rounding = None if name is None else Rounding(name, lambda: samples)
    return legalize(graph, placement, config, exporter.rules, statistics, scheme, rounding)


@pytest.mark.parametrize("scheme", ["dynamic", "static", "integer"])
def test_every_scheme_profits_at_four_bits(scheme: str) -> None:
    precision = Precision(4, 8, products_only=True)
    ratios = []
    for seed in SEEDS:
        graph, _ = vit(Form(width=16, heads=2, depth=2), seed)
        samples, held_out = images(24, 50 + seed), images(12, 900 + seed)
        results = {n: legalized(graph, scheme, precision, samples, n) for n in ("nearest", "gptq")}
        errors = {n: output_error(graph, r.simulation, held_out) for n, r in results.items()}
        ratios.append(errors["gptq"] / errors["nearest"])
        for name, result in results.items():
            assert all(t.rounding.startswith(name) for t in result.plan.weights())
    assert math.prod(ratios) ** (1 / len(ratios)) < 0.8, ratios


def test_nearest_reads_no_samples() -> None:
    def refuse() -> Samples:
        raise AssertionError("nearest needs no data")

    graph, _ = captured(Net(), 1, 3, 8, 8)
    exporter = get_exporter("tflite")
    config, placement = place_scheme(graph, exporter, "dynamic")
    plans = [
        legalize(graph, placement, config, exporter.rules, {}, "dynamic", rounding).plan
        for rounding in (None, Rounding("nearest", refuse))
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("scheme", ["dynamic", "integer"])
def test_emission_and_simulation_hold_the_solved_weights_and_biases(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeq.graph import legalize as module

    kept: dict[str, Solved] = {}
    real: Callable[..., dict[str, Solved]] = module.solve_weights

    def watched(*args: Any) -> dict[str, Solved]:
        kept.update(real(*args))
        return kept

    monkeypatch.setattr(module, "solve_weights", watched)
    graph, _ = captured(Net(bias=False), 1, 3, 8, 8)
    result = legalized(graph, scheme, Precision(4, 8), images(6), "gptq")
    paths = layers_of(graph)
    for name, layer in kept.items():
        assert torch.equal(fetch(result.emission, paths[name]), dequantize(layer.codes, layer.qparams))
        for emitted in (result.emission, result.simulation):
            node = {n.name: n for n in emitted.graph.nodes}[name]
            assert layer.bias is None or torch.equal(fetch(emitted, str(node.args[2].target)), layer.bias)
        assert result.plan.tensors[paths[name]].qparams == layer.qparams
    assert sum(layer.bias is not None for layer in kept.values()) >= 3


def test_the_own_error_of_a_layer_is_that_of_its_solved_weight_and_bias() -> None:
    graph, _ = captured(nn.Sequential(*(nn.Linear(8, 8) for _ in range(2)), nn.GELU(), nn.Linear(8, 3)), 1, 10, 8)
    samples: Samples = [(torch.randn(1, 10, 8),) for _ in range(8)]
    result = legalized(graph, "dynamic", Precision(3, 8), samples, "gptq")
    own = {r.name: r.own_db for r in layer_fidelity(graph, result, samples[:1])}
    inputs = layer_inputs(graph, samples[0])
    for node in calls(result.emission, aten.linear.default):
        truth = {n.name: n for n in graph.graph.nodes}[node.name]
        weight, bias = (fetch(graph, str(a.target)) for a in truth.args[1:])
        path, solved_bias = layers_of(graph)[node.name], fetch(result.emission, str(node.args[2].target))
        rough = dynamic_fake_quantize(inputs[node.name], per_row=True)
        expected = functional.linear(inputs[node.name], weight, bias)
        actual = functional.linear(rough, fetch(result.emission, path), solved_bias)
        assert own[node.name] == pytest.approx(sqnr_db(expected.numpy(), actual.numpy()), abs=0.01)
