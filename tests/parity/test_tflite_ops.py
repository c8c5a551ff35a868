"""Every integer operation, through the real converter and three kernel sets, against the legalizer's simulation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeq.devices.litert import LiteRtModel
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.legalize import legalize, observed
from edgeq.graph.placement import place
from edgeq.metrics import sqnr_db
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.spec import Precision
from tests.parity.cases import CASES, Case, Lambda

KERNELS = ("xnnpack", "builtin", "reference")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_integer_kernel_equals_simulation(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(7)
    exporter = get_exporter("tflite")
    example = tuple(torch.randn(shape) for shape in case.shapes)
    graph = capture(case.make().eval(), example)
    config, placement = place_scheme(graph, exporter, "integer")
    batches = [tuple(torch.randn(shape) for shape in case.shapes) for _ in range(4)]
    statistics = calibrate(graph, observed(graph, placement), [*batches, example])
    legalized = legalize(graph, placement, config, exporter.rules, statistics, "integer")
    path = tmp_path / "op.tflite"
    exporter.emit(legalized.emission, example, legalized.plan, path)

    read_back = exporter.read_back(path, legalized)
    assert not read_back.missing
    assert not read_back.extra
    assert [op.kernel for op in read_back.ops if op.op == case.kernel] == ["int8"], read_back.census()

    output = next(n for n in graph.graph.nodes if n.op == "output").args[0][0]
    scale = float(legalized.plan.tensors[output.name].qparams.scale)
    with torch.no_grad():
        expected = legalized.simulation(*example)[0].numpy()
    for kernels in KERNELS:
        (actual,) = LiteRtModel(path, kernels=kernels).run(*(x.numpy() for x in example))
        steps = np.abs(np.rint((actual - expected) / scale))
        assert steps.max() <= 1, f"{kernels}: {steps.max():.0f} codes off"
        assert (steps > 0).mean() <= case.flips, f"{kernels}: {(steps > 0).mean():.3f} of the outputs flipped"


@pytest.mark.parametrize("centred", [True, False])
def test_only_a_centred_right_operand_is_multiplied_by_xnnpack(centred: bool, tmp_path: Path) -> None:
    torch.manual_seed(7)
    exporter = get_exporter("tflite")
    example = (torch.rand(1, 2, 9, 16), torch.rand(1, 2, 16, 9))  # of one sign: min-max would not be centred
    graph = capture(Lambda(torch.matmul), example)
    rules = exporter.rules if centred else replace(exporter.rules, symmetric={})
    config = exporter.config("integer", Precision())
    placement = place(graph, config, rules)
    statistics = calibrate(graph, observed(graph, placement), [example])
    legalized = legalize(graph, placement, config, rules, statistics, "integer")
    path = tmp_path / "op.tflite"
    exporter.emit(legalized.emission, example, legalized.plan, path)

    right = [n.name for n in graph.graph.nodes if n.op == "placeholder"][1]
    assert int(legalized.plan.tensors[right].uniform.zero_point) == (0 if centred else -128)
    (product,) = [op for op in LiteRtModel(path).ops if op.name == "BATCH_MATMUL"]
    assert product.delegated is centred
    assert [op.kernel for op in exporter.read_back(path, legalized).ops if op.op == "BATCH_MATMUL"] == ["int8"]


class Halves(nn.Module):
    """Both halves of a tensor that stays float: one is read by a layer, both are joined with its result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(12, 2, 1)
        with torch.no_grad():
            self.first.weight[:4] *= 20.0  # the halves want different grids

    def forward(self, x: Tensor) -> Tensor:
        both = self.first(x)
        quiet, loud = both[:, 4:], both[:, :4]
        return self.last(torch.cat([loud, quiet, self.inner(quiet)], 1))


@pytest.mark.parametrize("together", [True, False])
def test_halves_of_a_float_tensor_share_a_grid_or_biases_are_wrong(together: bool, tmp_path: Path) -> None:
    torch.manual_seed(7)
    exporter = get_exporter("tflite")
    example = (torch.randn(1, 3, 8, 8),)
    graph = capture(Halves().eval(), example)
    rules = replace(exporter.rules, moves_together=together)
    config, _ = place_scheme(graph, exporter, "integer", Precision(keep_float=("first",)))
    placement = place(graph, config, rules)
    legalized = legalize(
        graph, placement, config, rules, calibrate(graph, observed(graph, placement), [example]), "integer"
    )
    exporter.emit(legalized.emission, example, legalized.plan, tmp_path / "halves.tflite")
    assert (exporter.read_back(tmp_path / "halves.tflite", legalized).misfits == ()) is together
    with torch.no_grad():
        expected = legalized.simulation(*example)[0].numpy()
    (found,) = LiteRtModel(tmp_path / "halves.tflite").run(example[0].numpy())
    assert (sqnr_db(expected, found) > 25) is together
