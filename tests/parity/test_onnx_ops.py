"""Every integer operation through torch's exporter and onnxruntime, against the legalizer's simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeq.devices.ort import OrtModel
from edgeq.exporters import get_exporter
from edgeq.exporters.base import ReadBack
from edgeq.graph.capture import capture
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.graph.placement import place
from edgeq.quant.calibrator import calibrate
from edgeq.spec import Precision
from tests.parity.cases import CASES, Case

KERNELS = (
    *("linear", "linear_no_bias", "linear_relu", "conv3x3", "conv3x3_stride2_relu", "conv1x1", "patch_embed"),
    *("depthwise", "matmul", "add", "add_constant", "add_relu6", "mul", "mul_constant", "softmax", "sigmoid"),
    *("max_pool", "avg_pool"),
)
MORE = (
    Case("leaky_relu", lambda: nn.LeakyReLU(0.1), ((1, 5, 64),), "LeakyRelu"),
    Case("layers", lambda: nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)), ((1, 7, 64),), "MatMul"),
    Case(
        "convolutions",  # equal zero points of several layers
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1)),
        ((1, 8, 12, 12),),
        "Conv",
    ),
)
ALL = {c.name: c for c in (*CASES, *MORE)}
INTEGER = [*KERNELS, *(c.name for c in MORE)]
FLOAT = sorted(set(ALL) - set(INTEGER))


class Side(nn.Module):
    """Cases side by side, each with its own inputs and output: one export for all."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(ALL[name].make() for name in names)
        self.counts = [len(ALL[name].shapes) for name in names]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rest, results = list(inputs), []
        for part, count in zip(self.parts, self.counts, strict=True):
            results.append(part(*rest[:count]))
            rest = rest[count:]
        return tuple(results)


@dataclass(frozen=True)
class Built:
    """A written file, what it should hold, and by case: simulated and real output, and the unit of their difference."""

    path: Path
    legalized: Legalized
    read_back: ReadBack
    steps: dict[str, np.ndarray]


def build(names: Sequence[str], scheme: str, bits: int, path: Path) -> Built:
    torch.manual_seed(7)
    exporter = get_exporter("onnx")
    shapes = [shape for name in names for shape in ALL[name].shapes]
    batches = [tuple(torch.randn(shape) for shape in shapes) for _ in range(5)]
    example = batches[-1]
    graph = exporter.prepare(capture(Side(names).eval(), example))
    config = exporter.config(scheme, Precision(weight_bits=bits))
    placement = place(graph, config, exporter.rules)
    statistics = calibrate(graph, observed(graph, placement), batches)
    legalized = legalize(graph, placement, config, exporter.rules, statistics, scheme)
    exporter.emit(legalized.emission, example, legalized.plan, path)
    with torch.no_grad():
        expected = [o.numpy() for o in legalized.simulation(*example)]
    actual = OrtModel(path).run(*(x.numpy() for x in example))
    results = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    steps = {}
    for name, node, wanted, found in zip(names, results, expected, actual, strict=True):
        plan = legalized.plan.tensors.get(node.name)
        unit = float(plan.uniform.scale) if plan else float(np.abs(wanted).max()) / 127
        steps[name] = np.abs(np.rint((found - wanted) / unit))
    return Built(path, legalized, exporter.read_back(path, legalized), steps)


@pytest.fixture(scope="module")
def integer(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(list(ALL), "integer", 8, tmp_path_factory.mktemp("ops") / "ops.onnx")


@pytest.mark.parametrize("name", INTEGER)
def test_integer_kernel_equals_simulation(name: str, integer: Built) -> None:
    assert integer.steps[name].max() <= 1
    assert (integer.steps[name] > 0).mean() <= ALL[name].flips


@pytest.mark.parametrize("name", FLOAT)
def test_what_has_no_integer_kernel_is_float_and_the_same(name: str, integer: Built) -> None:
    assert integer.steps[name].max() == 0


def test_every_product_is_an_integer_kernel(integer: Built) -> None:
    assert not integer.read_back.missing
    assert not integer.read_back.extra
    written = Counter(op.op for op in integer.read_back.ops if op.kernel == "int8")
    assert written == {
        **{"Conv": 7, "MatMul": 6, "Add": 3, "Mul": 2, "Softmax": 1, "Sigmoid": 1, "MaxPool": 1},
        **{"AveragePool": 1, "LeakyRelu": 1},
    }
    execution = OrtModel(integer.path).execution()
    kernels = Counter(op.op for op in execution.ops)
    assert {k: n for k, n in kernels.items() if k.startswith("Q") or "Integer" in k} == {
        **{"QLinearConv": 7, "QGemm": 4, "MatMulIntegerToFloat": 2, "QLinearAdd": 3, "QLinearMul": 2},
        **{"QLinearSoftmax": 1, "QLinearSigmoid": 1, "QLinearAveragePool": 1, "QLinearLeakyRelu": 1},
        **{"QuantizeLinear": kernels["QuantizeLinear"]},
    }
    covered = {name for op in execution.ops if op.integer for name in op.covers}
    assert covered >= {op.name for op in integer.read_back.ops if op.macs}
    float_kinds = {op.op for op in integer.legalized.plan.ops.values() if op.mode == "float"}
    assert float_kinds == {"gelu", "tanh", "mean", "upsample_bilinear2d"}


@pytest.mark.parametrize("bits", [8, 4])
def test_dynamic_layers_are_one_kernel(bits: int, tmp_path: Path) -> None:
    built = build(["linear", "linear_no_bias", "layers"], "dynamic", bits, tmp_path / "op.onnx")
    assert not built.read_back.missing
    assert not built.read_back.extra
    products = {op.name for op in built.read_back.ops if op.kernel == "dynamic"}
    assert len(products) == 4
    execution = OrtModel(built.path).execution()
    assert Counter(op.op for op in execution.ops) == {"DynamicQuantizeMatMul": 4, "Relu": 1}
    assert {name for op in execution.ops if op.integer for name in op.covers} >= products
    # A flipped code of the second layer's input moves its whole row.
    assert all(steps.max() <= (2 if name == "layers" else 1) for name, steps in built.steps.items())


def test_four_bit_weights_take_half_a_byte_and_run_on_integers(tmp_path: Path) -> None:
    import onnx

    built = build(["linear", "conv3x3", "depthwise"], "static", 4, tmp_path / "op.onnx")
    assert not built.read_back.missing
    assert not built.read_back.extra
    model = onnx.load(str(built.path))
    stored = {
        e.name: e.data_type for e in model.graph.initializer if "weight_codes" in e.name and "zeros" not in e.name
    }
    assert len(stored) == 3
    assert set(stored.values()) == {onnx.TensorProto.INT4}
    assert model.opset_import[0].version == 21
    assert Counter(op.op for op in OrtModel(built.path).execution().ops if op.integer) == {"QLinearConv": 2, "QGemm": 1}
    assert max(steps.max() for steps in built.steps.values()) <= 1
