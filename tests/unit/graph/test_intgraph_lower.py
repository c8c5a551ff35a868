"""Lowering: every operation within a code of the simulation when both read the same codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgeq.errors import DataError, InternalError, ModelError
from edgeq.graph.intgraph.builder import merged, positions
from edgeq.graph.intgraph.graph import Add, Conv, Depthwise, IntGraph, MatMul, Norm, Requantize, Softmax, Weights
from edgeq.graph.intgraph.interpret import interpret, quantize_input, run_op
from edgeq.graph.intgraph.lower import lower
from edgeq.graph.legalize import Legalized
from edgeq.metrics import sqnr_db
from edgeq.spec import Precision, codes_hash
from tests.unit.graph.intgraphs import Sample, SmallAttention, SmallCnn, codes_of, legalized, lowered, noise


class _Codes(fx.Interpreter):
    """Codes of every quantized tensor of the simulation, by the name of the node that makes it."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.codes: dict[str, NDArray[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if "quantize_per_tensor" in n.name and not n.name.startswith("de"):
            source = n.args[0]
            assert isinstance(source, fx.Node)
            self.codes[source.name] = value.numpy()
            if source.target in (torch.ops.aten.relu.default, torch.ops.aten.hardtanh.default):
                layer = source.args[0]
                assert isinstance(layer, fx.Node)
                self.codes.setdefault(layer.name, value.numpy())
        return value


def differences(form: Legalized, graph: IntGraph, sample: Sample) -> dict[str, tuple[str, int]]:
    """Largest difference in codes of each operation that reads the simulation's codes."""
    simulated = _Codes(form.simulation)
    with torch.no_grad():
        simulated.run(*sample)
    values: dict[str, NDArray[Any]] = dict(graph.constants)
    ports = zip(graph.inputs, sample, strict=True)
    values.update({p.tensor: quantize_input(graph, p, x.numpy()) for p, x in ports})
    found = {}
    for op in graph.ops:
        tensor = graph.tensors[op.output]
        got = run_op(graph.tensors, op, [values[name] for name in op.inputs])
        expected = simulated.codes.get(op.output)
        if op.output in form.plan.tensors:  # a largest code may wait on its input's grid
            planned = form.plan.tensors[op.output].uniform
            expected = expected if np.isclose(float(planned.scale), tensor.scale, rtol=1e-6) else None
        if expected is not None and expected.size == got.size:
            if expected.ndim == 4 and expected.shape != tensor.shape:
                expected = expected.transpose(0, 2, 3, 1)
            forced = expected.ravel().astype(got.dtype)
            gap = int(np.abs(got.astype(int) - forced.astype(int)).max())
            found[op.name] = (type(op).__name__, gap)
            got = forced
        values[op.output] = got
    return found


@pytest.mark.parametrize("module, shape", [(SmallCnn(), (1, 3, 20, 20)), (SmallAttention(), (1, 7, 12))])
def test_every_operation_is_within_a_code_of_the_simulation(module: nn.Module, shape: tuple[int, ...]) -> None:
    samples = noise(*shape)
    form = legalized(module.eval(), samples)
    graph = lower(form.emission, form.plan, "small")
    found = differences(form, graph, samples[0])
    assert len(found) >= 9
    near = {name: gap for name, (kind, gap) in found.items() if kind not in ("Softmax", "Norm")}
    assert max(near.values()) <= 1, near
    # 16-bit results of tables and roots: a few ten-thousandths of their range.
    assert max(gap for _, gap in found.values()) <= 24, found


@pytest.mark.parametrize("module, shape", [(SmallCnn(), (1, 3, 20, 20)), (SmallAttention(), (1, 7, 12))])
def test_weights_are_those_of_the_plan(module: nn.Module, shape: tuple[int, ...]) -> None:
    form = legalized(module.eval(), noise(*shape))
    graph = lower(form.emission, form.plan, "small")
    hashes = {tensor.codes_sha256 for tensor in form.plan.weights()}
    found = set()
    for op in graph.ops:
        weights = getattr(op, "weights", None)
        if not isinstance(weights, Weights):
            continue
        codes = weights.codes
        if isinstance(op, Depthwise):
            codes = codes.T.reshape(-1, 1, *op.window.kernel)
        elif isinstance(op, Conv):
            codes = codes.reshape(-1, *op.window.kernel, op.window.channels).transpose(0, 3, 1, 2)
        found.add(codes_hash(codes))
    assert found == hashes


def test_moves_cost_nothing_until_codes_must_lie_side_by_side() -> None:
    graph = lowered(SmallAttention().eval(), noise(1, 7, 12))
    kinds = [type(op) for op in graph.ops]
    # Queries, keys and values are gathered out of one tensor, and the mixed heads put back: nothing else moves.
    assert kinds.count(MatMul) == 2 and kinds.count(Softmax) == 1 and kinds.count(Norm) == 2
    assert len([op for op in graph.ops if isinstance(op, Requantize) and len(op.dims) > 1]) <= 5


def test_layers_of_a_cnn_stay_in_image_order() -> None:
    graph = lowered(SmallCnn().eval(), noise(1, 3, 20, 20))
    assert graph.inputs[0].order == (0, 2, 3, 1)
    gathers = [op for op in graph.ops if isinstance(op, Requantize) and len(op.dims) > 1]
    assert len(gathers) == 2, [op.name for op in gathers]  # the two crops


class _Enlarged(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last, self.size = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 1, 1), size

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.interpolate(torch.relu(self.first(x)), size=self.size) + 1)


def test_nearest_enlargement_repeats_codes() -> None:
    samples = noise(1, 2, 3, 4)
    form = legalized(_Enlarged((6, 12)).eval(), samples)
    graph = lower(form.emission, form.plan, "small")
    assert max(gap for _, gap in differences(form, graph, samples[0]).values()) <= 1
    (repeat,) = [op for op in graph.ops if isinstance(op, Requantize) and len(op.dims) == 5]
    assert (repeat.dims, repeat.strides, repeat.scaling) == ((3, 2, 4, 3, 5), (20, 0, 5, 0, 1), None)
    codes = np.arange(60, dtype=np.int16)
    found = run_op(graph.tensors, repeat, [codes]).reshape(6, 12, 5)
    low, high = graph.tensors[repeat.output].low, graph.tensors[repeat.output].high
    expected = codes.reshape(3, 4, 5).repeat(2, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(found, expected.clip(low, high))
    with pytest.raises(ModelError, match="whole times") as caught:
        lowered(_Enlarged((5, 12)).eval(), samples)
    assert caught.value.code == "EQ-M500"


def test_four_bit_weights_are_kept_as_such() -> None:
    module = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3))
    graph = lowered(module.eval(), noise(5, 12), Precision(4, 8))
    layers = [op.weights for op in graph.ops if hasattr(op, "weights")]
    assert [w.bits for w in layers] == [8, 4, 8]  # the first and the last layer keep 8
    assert np.abs(layers[1].codes).max() <= 7


class _Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 3.0 - 1.0)[:, 1:].transpose(1, 2) * 0.5


def test_scalars_change_the_grid_and_nothing_else() -> None:
    samples = noise(1, 5, 6)
    graph = lowered(_Scaled(), samples)
    assert [type(op) for op in graph.ops] in ([Requantize, Add, Requantize], [Requantize, Add, Requantize, Requantize])
    form = legalized(_Scaled(), samples)
    with torch.no_grad():
        wanted = form.simulation(*samples[0])[0].numpy()
    port = graph.outputs[0]
    tensor = graph.tensors[port.tensor]
    codes = interpret(graph, codes_of(graph, samples)[0])[0]
    got = (codes.astype(float) - tensor.zero_point) * tensor.scale
    assert sqnr_db(wanted, got.reshape(wanted.shape)) > 40


class _Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(torch.relu(x), -1)


@pytest.mark.parametrize("module, words", [(_Grouped(), "conv.*group"), (_Sorted(), "cumsum.*no kernel")])
def test_what_has_no_kernel_is_refused_by_name(module: nn.Module, words: str) -> None:
    samples = noise(1, 4, 6, 6)
    with pytest.raises(ModelError, match=f"(?s){words}") as refused:
        lowered(module.eval(), samples)
    assert refused.value.code == "EQ-M500"
    assert refused.value.place


def test_products_of_16_bits_are_refused() -> None:
    with pytest.raises(ModelError, match="8-bit codes"):
        lowered(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)), noise(1, 4), Precision(8, 16)
        )


def test_a_layer_that_could_overflow_is_refused() -> None:
    layer = nn.Linear(1 << 18, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    with pytest.raises(ModelError, match="could reach") as refused:
        lowered(layer, noise(1, 1 << 18, count=1))
    assert refused.value.code == "EQ-M501"


def test_inputs_of_another_size_are_refused() -> None:
    graph = lowered(nn.Linear(4, 2), noise(1, 4))
    with pytest.raises(DataError, match="4 codes"):
        interpret(graph, [np.zeros(3, np.int8)])
    with pytest.raises(DataError, match="finite"):
        quantize_input(graph, graph.inputs[0], np.full((1, 4), np.nan, np.float32))


def test_a_graph_checks_itself() -> None:
    graph = lowered(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), noise(1, 4))
    with pytest.raises(InternalError):
        IntGraph("broken", graph.ops[1:], graph.tensors, {}, graph.inputs, graph.outputs)
    with pytest.raises(InternalError):
        IntGraph("empty", (), {}, {}, (), ())


def test_axes_that_lie_together_are_merged() -> None:
    assert merged(positions((2, 3, 4))) == ((24,), (1,))
    assert merged(positions((2, 3, 4)).transpose(2, 0, 1)) == ((4, 6), (1, 4))
    assert merged(positions((2, 3, 4))[:, 1:2]) == ((2, 4), (12, 1))
    assert merged(positions((1, 1))) == ((1,), (1,))
