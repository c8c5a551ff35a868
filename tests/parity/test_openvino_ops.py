"""Every integer product through OpenVINO's converter and kernels, against the legalizer's simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeq.candidate import _ran_float
from edgeq.devices import open_model
from edgeq.devices.base import Execution
from edgeq.exporters import get_exporter
from edgeq.exporters.base import ReadBack
from edgeq.graph.capture import capture
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.spec import PerGroup, Precision, QuantConfig, QuantRule, QuantSpec, codes_hash
from tests.parity.cases import CASES, Case, Lambda

PRODUCTS = [c for c in CASES if c.kernel in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL")]


def exported(
    module: nn.Module,
    shapes: tuple[tuple[int, ...], ...],
    folder: Path,
    precision: Precision | None = None,
    scheme: str = "integer",
    config: Callable[[QuantConfig], QuantConfig] = lambda config: config,
    **rules: Any,
) -> tuple[tuple[Tensor, ...], Legalized, ReadBack, Path]:
    """An integer export of a random network; weights are random, this is about kernels."""
    torch.manual_seed(7)
    exporter = get_exporter("openvino")
    example = tuple(torch.randn(shape) for shape in shapes)
    graph = exporter.prepare(capture(module.eval(), example))
    exporter.rules = replace(exporter.rules, **rules)
    chosen, placement = place_scheme(graph, exporter, scheme, precision)
    batches = [tuple(torch.randn(shape) for shape in shapes) for _ in range(4)]
    names = observed(graph, placement)
    statistics = calibrate(graph, names, [*batches, example]) if names else {}
    legalized = legalize(graph, placement, config(chosen), exporter.rules, statistics, scheme)
    path = folder / "model.xml"
    exporter.emit(legalized.emission, example, legalized.plan, path)
    return example, legalized, exporter.read_back(path, legalized), path


def compared(example: tuple[Tensor, ...], legalized: Legalized, path: Path) -> tuple[float, Execution]:
    """Largest difference from the simulation as a share of the largest value, and what ran."""
    with torch.no_grad():
        expected = legalized.simulation(*example)[0].numpy()
    model = open_model(path)
    (found,) = model.run(*(x.numpy() for x in example))
    return float(np.abs(found - expected).max() / np.abs(expected).max()), model.execution()


def integer_names(execution: Execution) -> set[str]:
    return {name for op in execution.ops if op.integer for name in op.covers}


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda c: c.name)
def test_integer_kernel_equals_simulation(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(7)
    example, legalized, read_back, path = exported(case.make(), case.shapes, tmp_path)
    assert not read_back.missing
    assert not read_back.extra
    names = [op.name for op in read_back.ops if op.kernel == "int8" and op.macs]
    assert len(names) == 1, read_back.census()
    assert read_back.integer_mac_share == 1
    assert legalized.plan.ops[names[0]].mode == "static"
    error, execution = compared(example, legalized, path)
    assert names[0] in integer_names(execution), execution.kernels()
    # Inputs on a grid, sums of 8-bit products exact: what is left is float32.
    assert error <= 1e-5


@pytest.mark.parametrize(
    ("name", "make", "shape"),
    [
        ("linear", lambda: nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 48), nn.Linear(48, 16)), (1, 7, 64)),
        ("conv", lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 1)), (1, 3, 9, 9)),
    ],
)
def test_four_bit_weights_take_half_and_run_in_the_same_kernels(
    name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    import openvino

    torch.manual_seed(7)
    example, legalized, read_back, path = exported(make(), (shape,), tmp_path, Precision(weight_bits=4))
    assert not read_back.missing
    assert not read_back.extra
    assert sorted(t.bits for t in legalized.plan.weights()) == [4, 8, 8]
    model = openvino.Core().read_model(path)
    types = [o.get_element_type().get_type_name() for o in model.get_ops() if o.get_type_name() == "Constant"]
    assert (types.count("i4"), types.count("i8")) == (1, 2)
    error, execution = compared(example, legalized, path)
    assert {op.name for op in read_back.ops if op.macs} <= integer_names(execution), execution.kernels()
    assert error <= 1e-5


TWO_LEVEL = QuantSpec(4, True, PerGroup(32, two_level=True), "mse", narrow=True)


def on_two_levels(config: QuantConfig) -> QuantConfig:
    """`config` with the second layer's weight on two-level scales."""
    return replace(config, rules=(*config.rules, QuantRule("*1", weight=TWO_LEVEL)))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 16)), (1, 7, 64)),
        (lambda: nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 16, 3), nn.Conv2d(16, 8, 1)), (1, 3, 9, 9)),
        (lambda: nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, groups=2)), (1, 3, 9, 9)),
    ],
    ids=["linear", "conv", "grouped conv"],
)
def test_two_level_weights_are_unfolded_when_compiled_and_run_in_the_same_kernels(
    make: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    torch.manual_seed(7)
    module = make()
    with torch.no_grad():
        module.get_submodule("1").weight.mul_(torch.rand_like(module.get_submodule("1").weight))  # groups that differ
    example, legalized, read_back, path = exported(module, (shape,), tmp_path, config=on_two_levels)
    assert not read_back.missing
    assert not read_back.extra
    planned = legalized.plan.tensors["1.weight"]
    multiples, rows = planned.uniform.multiples, planned.uniform.on_rows()
    assert multiples is not None and len(np.unique(multiples)) > 4
    assert codes_hash(read_back.weights["1.weight"]) == planned.codes_sha256
    held = {o.get_friendly_name(): o for o in openvino.Core().read_model(path).get_ops()}
    constants = [o for o in held.values() if o.get_type_name() == "Constant"]
    types = [o.get_element_type().get_type_name() for o in constants]
    assert (types.count("i4"), types.count("u8")) == (1, 1)
    np.testing.assert_array_equal(constants[types.index("u8")].data.reshape(multiples.shape), multiples)
    steps = [o.data.reshape(-1) for o in constants if o.data.size == len(rows.scale)]
    assert any(np.allclose(found, rows.scale, rtol=1e-6, atol=0) for found in steps)
    error, execution = compared(example, legalized, path)
    assert {op.name for op in read_back.ops if op.macs} <= integer_names(execution), execution.kernels()
    assert error <= 2e-3  # float differences flip single codes
    with monkeypatch.context() as patched:
        patched.setattr("edgeq.exporters.openvino.emit.pack_weights", lambda model, plan: [])
        get_exporter("openvino").emit(legalized.emission, example, legalized.plan, tmp_path / "wide.xml")
    packed, wide = open_model(path), open_model(tmp_path / "wide.xml")
    inputs = [x.numpy() for x in example]
    np.testing.assert_array_equal(packed.run(*inputs)[0], wide.run(*inputs)[0], "as 8-bit codes on the steps of rows")
    assert packed.execution().kernels() == wide.execution().kernels(), "else the multiples run with every inference"


def test_weights_whose_groups_are_alike_are_found_as_well(tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 16))
    with torch.no_grad():
        network[1].weight.sign_().mul_(0.1)
    example, legalized, read_back, path = exported(network, ((1, 7, 64),), tmp_path, config=on_two_levels)
    multiples = legalized.plan.tensors["1.weight"].uniform.multiples
    assert multiples is not None and (multiples == 1).all()
    assert not read_back.missing and not read_back.extra
    assert compared(example, legalized, path)[0] <= 2e-3


def test_other_multiples_or_steps_are_found(tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 16))
    _, legalized, _, path = exported(network, ((1, 7, 64),), tmp_path, config=on_two_levels)
    planned = legalized.plan.tensors["1.weight"]
    grid = planned.uniform
    assert grid.multiples is not None
    for change in (np.float32(1.0001), np.where(grid.multiples == grid.multiples.max(), np.float32(0.5), 1)):
        other = replace(planned, qparams=replace(grid, scale=grid.scale * change))
        plan = replace(legalized.plan, tensors={**legalized.plan.tensors, "1.weight": other})
        found = get_exporter("openvino").read_back(path, replace(legalized, plan=plan))
        assert found.missing == ("1.weight",)
        assert len(found.extra) == 1


class Attention(nn.Module):
    """Two heads of attention with its projections."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(1, 9, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        probabilities = (q * 0.25 @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((probabilities @ v).transpose(1, 2).reshape(1, 9, 32))


def test_attention_runs_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(7)
    example, legalized, read_back, path = exported(Attention(), ((1, 9, 32),), tmp_path)
    planned = {n for n, op in legalized.plan.ops.items() if op.op in ("linear", "matmul")}
    assert {op.name for op in read_back.ops if op.kernel == "int8" and op.macs} == planned
    error, execution = compared(example, legalized, path)
    assert planned <= integer_names(execution), execution.kernels()
    assert error <= 0.02  # float differences flip single codes


def conv() -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1)


class Residual(nn.Module):
    """A sum and a concatenation between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(), conv(), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.c(torch.cat([torch.relu(self.b(y) + y), y * 3], 1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "max_pool": lambda: nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv()),
    "padded_avg_pool": lambda: nn.Sequential(conv(), nn.AvgPool2d(3, 2, 1), conv()),  # in integers it pads wrongly
    "mean": lambda: nn.Sequential(conv(), Lambda(lambda x: x.mean((2, 3))), nn.Linear(8, 5)),
    "amax": lambda: nn.Sequential(conv(), Lambda(lambda x: x.amax((2, 3))), nn.Linear(8, 5)),
    "upsample": lambda: nn.Sequential(conv(), nn.SiLU(), nn.Upsample(scale_factor=2), conv()),
    "transposed": lambda: nn.Sequential(conv(), nn.ConvTranspose2d(8, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 4, 1)),
    "two transposed": lambda: nn.Sequential(
        *(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 4, 1))
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_their_simulation(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    example, legalized, read_back, path = exported(NETWORKS[name](), ((1, 8, 9, 9),), tmp_path)
    assert not read_back.missing
    assert not read_back.extra
    assert read_back.integer_mac_share == 1
    error, execution = compared(example, legalized, path)
    assert {op.name for op in read_back.ops if op.macs} <= integer_names(execution), execution.kernels()
    assert error <= 1e-5


def test_a_grid_behind_a_maximum_would_be_wrong(tmp_path: Path) -> None:
    """Were this to pass without the rule, OpenVINO would have mended its kernel."""
    torch.manual_seed(3)
    example, legalized, _, path = exported(NETWORKS["amax"](), ((1, 8, 9, 9),), tmp_path, early=frozenset())
    assert compared(example, legalized, path)[0] > 0.01


def test_fifteen_levels_would_be_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 48), nn.Linear(48, 16))
    monkeypatch.setattr("edgeq.exporters.openvino.emit.widen_weights", lambda graph: graph)
    example, legalized, _, path = exported(network, ((1, 7, 64),), tmp_path, Precision(weight_bits=4))
    _, execution = compared(example, legalized, path)
    assert any(op.op == "FullyConnected" and not op.integer for op in execution.ops), execution.kernels()


def test_a_product_of_uncentred_operands_would_be_float(tmp_path: Path) -> None:
    torch.manual_seed(7)
    shapes = ((1, 2, 9, 16), (1, 2, 16, 9))
    example, legalized, read_back, path = exported(Lambda(torch.matmul), shapes, tmp_path, symmetric={})
    (product,) = [op for op in read_back.ops if op.macs]
    _, execution = compared(example, legalized, path)
    assert product.kernel == "int8"
    assert product.name not in integer_names(execution)
    (reason,) = _ran_float(read_back, execution)
    assert product.name in reason


def test_inputs_quantized_at_run_time_equal_their_simulation(tmp_path: Path) -> None:
    """The executed graph does not tell it; the results do: far from float arithmetic, close to the simulation."""
    torch.manual_seed(7)
    network = nn.Sequential(nn.Linear(200, 96), nn.Linear(96, 16))  # the last group of 200 is short
    example, legalized, read_back, path = exported(network, ((1, 7, 200),), tmp_path, scheme="dynamic")
    assert not read_back.missing
    assert read_back.census()["MatMul dynamic"] == 2
    assert read_back.integer_mac_share == 1
    error, execution = compared(example, legalized, path)
    assert execution.settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "64"
    with torch.no_grad():
        exact, simulated = (g(*example)[0] for g in (legalized.emission, legalized.simulation))
    assert float((exact - simulated).abs().max() / exact.abs().max()) > 3e-3
    assert error < 1e-3


def test_integer_weights_in_float_arithmetic(tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = nn.Sequential(conv(), nn.Flatten(1), nn.Linear(8 * 81, 16))
    example, legalized, read_back, path = exported(network, ((1, 8, 9, 9),), tmp_path, scheme="weights")
    assert not read_back.missing
    assert len(read_back.weights) == 2
    assert read_back.integer_mac_share == 0
    assert compared(example, legalized, path)[0] <= 1e-5
