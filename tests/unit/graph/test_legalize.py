"""Placement and legalizing on small graphs with random weights: structure, not accuracy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.layers import layer_fidelity
from edgeq.graph.legalize import Legalized, dynamic_fake_quantize, legalize, observed
from edgeq.models.vit_nano import Block
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.spec import Precision, QuantPlan, codes_hash


class Branches(nn.Module):
    """A convolution with a fused ReLU, a pooling, a reshape, and a linear layer that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        y = self.fc(x.reshape(1, -1))
        return torch.softmax(y, -1) + y


def quantized(
    module: nn.Module, shape: tuple[int, ...], scheme: str
) -> tuple[fx.GraphModule, Legalized, tuple[Tensor]]:
    torch.manual_seed(0)
    example = (torch.randn(shape),)
    exporter = get_exporter("tflite")
    graph = capture(module.eval(), example)
    config, placement = place_scheme(graph, exporter, scheme)
    statistics = calibrate(graph, observed(graph, placement), [(torch.randn(shape),) for _ in range(3)])
    return graph, legalize(graph, placement, config, exporter.rules, statistics, scheme), example


@pytest.fixture(scope="module")
def integer() -> Legalized:
    torch.manual_seed(0)
    return quantized(Branches(), (1, 3, 8, 8), "integer")[1]


def test_fused_activation_carries_the_grid(integer: Legalized) -> None:
    grids = {t.name for t in integer.plan.tensors.values() if t.role == "activation"}
    kinds = {o.op: o for o in integer.plan.ops.values()}
    assert kinds["relu"].mode == "static"
    assert kinds["relu"].name in grids
    assert kinds["conv2d"].name not in grids


def test_pooling_and_reshape_share_the_grid_of_their_input(integer: Legalized) -> None:
    by_name = integer.plan.tensors
    relu = next(o.name for o in integer.plan.ops.values() if o.op == "relu")
    pool = next(o.name for o in integer.plan.ops.values() if o.op == "max_pool2d")
    assert by_name[pool].qparams == by_name[relu].qparams
    assert "shared" in by_name[pool].provenance


def test_softmax_grid_is_the_runtime_s(integer: Legalized) -> None:
    softmax = next(o.name for o in integer.plan.ops.values() if o.op == "softmax")
    grid = integer.plan.tensors[softmax].qparams
    assert float(grid.scale) == 1 / 256
    assert int(grid.zero_point) == -128


def test_weights_lie_on_their_grid_and_the_float_graph_is_untouched() -> None:
    module = Branches()
    before = module.fc.weight.detach().clone()
    _, legalized, _ = quantized(module, (1, 3, 8, 8), "dynamic")
    assert torch.equal(module.fc.weight, before)
    for tensor in legalized.plan.weights():
        weight = legalized.emission.get_parameter(tensor.name).detach().numpy()
        scale = tensor.qparams.scale.reshape(-1, *[1] * (weight.ndim - 1))
        codes = np.rint(weight / scale)
        assert np.abs(codes).max() <= 127
        assert np.allclose(codes * scale, weight, rtol=0, atol=1e-7)
        assert codes_hash(codes.astype(np.int32)) == tensor.codes_sha256


def test_plan_survives_json(integer: Legalized) -> None:
    assert QuantPlan.from_dict(json.loads(json.dumps(integer.plan.to_dict()))) == integer.plan


def test_static_scheme_keeps_attention_float_with_a_reason() -> None:
    _, legalized, _ = quantized(Block(32, 2, 2), (1, 9, 32), "static")
    matmuls = [o for o in legalized.plan.ops.values() if o.op == "matmul"]
    assert len(matmuls) == 2
    assert all(o.mode == "float" and o.reason for o in matmuls)
    assert all(o.mode == "static" for o in legalized.plan.ops.values() if o.op == "linear")


def test_integer_scheme_quantizes_attention_and_says_why_layer_norm_is_float() -> None:
    _, legalized, _ = quantized(Block(32, 2, 2), (1, 9, 32), "integer")
    modes = {o.op: o for o in legalized.plan.ops.values()}
    assert modes["matmul"].mode == "static"
    assert modes["layer_norm"].mode == "float"
    assert "layer_norm" in modes["layer_norm"].reason


def test_quantizing_is_idempotent_on_the_simulation() -> None:
    graph, legalized, example = quantized(Block(32, 2, 2), (1, 9, 32), "integer")
    with torch.no_grad():
        assert torch.equal(legalized.simulation(*example)[0], legalized.simulation(*example)[0])
        assert not torch.equal(legalized.simulation(*example)[0], graph(*example)[0])


def test_layer_ranking_finds_the_layer_that_was_damaged() -> None:
    module = Block(32, 2, 2)
    with torch.no_grad():
        module.mlp.fc2.weight[:, 0] *= 300.0  # one huge input channel: its row scales leave the others no codes
    graph, legalized, example = quantized(module, (1, 9, 32), "dynamic")
    worst = layer_fidelity(graph, legalized, [example])[0]
    assert "fc2" in worst.name
    assert worst.weight_bits == 8
    assert worst.weights_db < worst.inputs_db, "the weight is at fault"
    assert worst.output_db == math.inf, "nothing quantizes the result"


@pytest.mark.parametrize("scheme", ["dynamic", "static", "integer"])
def test_the_parts_of_a_layers_error_make_the_whole(scheme: str) -> None:
    graph, legalized, example = quantized(Block(32, 2, 2), (1, 9, 32), scheme)
    rows = layer_fidelity(graph, legalized, [example])
    assert rows
    for row in rows:
        noise = sum(10 ** (-part / 10) for part in (row.weights_db, row.inputs_db, row.output_db))
        assert abs(-10 * math.log10(noise) - row.own_db) < 3, row  # independent noises add up


class Products(nn.Module):
    """A product of two tensors of one sign, the right one moved on its way, and a product with a softmax."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x) @ torch.relu(y).transpose(1, 2).reshape(1, 6, 5) @ torch.softmax(x, -1)


def test_the_right_operand_of_a_product_is_centred_and_so_is_what_shares_its_grid() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(1, 5, 6), torch.randn(1, 5, 6))
    exporter = get_exporter("tflite")
    graph = capture(Products(), inputs)
    config, placement = place_scheme(graph, exporter, "integer")
    statistics = calibrate(graph, observed(graph, placement), [inputs])
    plan = legalize(graph, placement, config, exporter.rules, statistics, "integer").plan
    first, second = (n for n in graph.graph.nodes if n.name in plan.ops and plan.ops[n.name].op == "matmul")
    zeros = {name: int(t.uniform.zero_point) for name, t in plan.tensors.items()}
    right = first.args[1]
    while right.op != "placeholder":  # the movements and the ReLU that they start from
        if right.name in plan.tensors and "relu" not in str(right.all_input_nodes[0].target):
            assert (zeros[right.name], plan.tensors[right.name].uniform.spec.symmetric) == (0, True)
        right = right.all_input_nodes[0]
    assert zeros[first.args[0].name] == -128
    # What the runtime dictates wins.
    fixed = plan.tensors[second.args[1].name].uniform
    assert (int(fixed.zero_point), fixed.spec.symmetric) == (-128, False)


def test_dynamic_grid_holds_zero_and_spans_each_row() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0], [-100.0, 0.0, 50.0]])
    quantized_rows = dynamic_fake_quantize(x, per_row=True)
    assert (quantized_rows - x).abs()[0].max() <= 4 / 255 / 2 + 1e-6
    assert (quantized_rows - x).abs()[1].max() <= 150 / 255 / 2 + 1e-4
    assert dynamic_fake_quantize(torch.zeros(1, 3), per_row=True).abs().max() == 0


class Chain(nn.Module):
    """Three products in a row, a reshape between the first two, a softmax before the last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).reshape(1, 16, 8).transpose(1, 2))
        return self.d(torch.softmax(self.c(y + x), -1))


class Gated(nn.Module):
    """A convolution, SiLU as sigmoid and product, and a convolution that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y * torch.sigmoid(y))


def test_a_sigmoid_freed_after_calibration_needs_no_statistics() -> None:
    torch.manual_seed(0)
    exporter = get_exporter("tflite")
    graph = exporter.prepare(capture(Gated().eval(), (torch.randn(1, 3, 8, 8),)))
    (gate,) = (n.name for n in graph.graph.nodes if "sigmoid" in str(n.target))
    names = observed(graph, place_scheme(graph, exporter, "integer")[1])
    statistics = calibrate(graph, names, [(torch.randn(1, 3, 8, 8),) for _ in range(3)])
    config, placement = place_scheme(graph, exporter, "integer", Precision(keep_float=(gate,)))
    plan = legalize(graph, placement, config, exporter.rules, statistics, "integer").plan
    assert plan.ops[gate].mode == "float"
    assert plan.tensors[gate].provenance == "range of sigmoid"
    assert float(plan.tensors[gate].uniform.scale) == pytest.approx(1 / 256)


def low_bits(products_only: bool) -> tuple[fx.GraphModule, QuantPlan]:
    torch.manual_seed(0)
    shape, exporter = (1, 8, 16), get_exporter("tflite")
    graph = capture(Chain().eval(), (torch.randn(shape),))
    config, placement = place_scheme(graph, exporter, "integer", Precision(4, 4, products_only=products_only))
    statistics = calibrate(graph, observed(graph, placement), [(torch.randn(shape),) for _ in range(3)])
    return graph, legalize(graph, placement, config, exporter.rules, statistics, "integer").plan


def test_only_what_a_product_reads_is_narrow() -> None:
    """First and last layer keep 8 bits, b and c are the 4-bit ones."""
    _, plan = low_bits(products_only=True)
    bits = {name: t.bits for name, t in plan.tensors.items() if t.role == "activation"}
    assert {bits[n] for n in ("a", "reshape", "transpose")} == {4}
    assert bits["b"] == 8
    assert bits["add"] == 4
    assert bits["c"] == 8
    assert bits["softmax"] == 8  # the last layer reads it


def test_values_that_only_move_share_one_grid_of_one_width() -> None:
    _, plan = low_bits(products_only=True)
    moved = [plan.tensors[n].uniform for n in ("a", "reshape", "transpose")]
    assert all(grid == moved[0] for grid in moved)


def test_a_dictated_grid_keeps_its_width() -> None:
    """1/256 with zero point -128 covers probabilities in 8 bits and nothing in 4."""
    _, plan = low_bits(products_only=False)
    grid = plan.tensors["softmax"].uniform
    assert (grid.spec.bits, float(grid.scale), int(grid.zero_point)) == (8, 1 / 256, -128)
