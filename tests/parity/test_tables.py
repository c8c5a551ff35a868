"""Tables of weights: the file holds the plan's integers, once where a layer shares them, and picks what it should."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeq.artifact import model_bytes
from edgeq.candidate import build, example_of
from edgeq.devices import open_model
from edgeq.exporters import get_exporter
from edgeq.exporters.base import Exporter
from edgeq.graph.capture import capture
from edgeq.graph.layers import layer_fidelity
from edgeq.graph.solve import Rounding
from edgeq.recipe import Recipe
from edgeq.spec import Precision

ROWS, WIDTH = 600, 64


class Tied(nn.Module):
    """A token's embedding and a position's through a layer, to logits by the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(ROWS, WIDTH)
        self.positions = nn.Parameter(torch.randn(20, WIDTH))
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tokens(tokens) + nn.functional.embedding(position, self.positions)
        return x, nn.functional.linear(self.layer(x), self.tokens.weight)


EXAMPLE = (torch.zeros(1, 3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32))
INPUTS = (np.array([[5, 599, 0]], np.int32), np.array([0, 19, 7], np.int32))


@pytest.mark.parametrize("name", ["tflite", "openvino"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_table_is_stored_in_integers_once(name: str, rounding: str, tmp_path: Path) -> None:
    exporter: Exporter = get_exporter(name)
    graph = exporter.prepare(capture(Tied().eval(), EXAMPLE))
    random = torch.Generator().manual_seed(1)
    samples = [
        (torch.randint(ROWS, (1, 3), generator=random).int(), torch.randint(20, (3,), generator=random).int())
        for _ in range(8)
    ]
    recipe = Recipe("none", rounding, Precision())
    candidate, legalized = build(
        graph, exporter, "dynamic", recipe, {}, Rounding(rounding, lambda: samples), (), tmp_path
    )
    assert candidate.rejected == ()
    assert sorted(candidate.read_back.weights) == ["layer.weight", "positions", "tokens.weight"]
    assert model_bytes(candidate.path) < ROWS * WIDTH * 1.9  # two copies of the table would be 2
    picked, logits = open_model(candidate.path).run(*INPUTS)
    simulated = [t.numpy() for t in legalized.simulation(*map(torch.from_numpy, INPUTS))]
    assert np.allclose(picked, simulated[0], rtol=0, atol=1e-6)  # a product and a sum of floats, fused or not
    assert np.abs(logits - simulated[1]).max() < 0.02 * np.abs(logits).max()
    exact = graph(*map(torch.from_numpy, INPUTS))[0].numpy()
    assert 0 < np.abs(picked - exact).max() < 0.05
    rows = {r.op: r for r in layer_fidelity(graph, legalized, samples[:2])}
    assert rows["embedding"].weights_db == rows["embedding"].own_db < 60, "all that is lost is in the table"
    assert rows["embedding"].inputs_db == rows["embedding"].output_db == math.inf


@pytest.mark.parametrize("scheme", ["dynamic", "weights"])
def test_a_table_on_groups_takes_four_bits_in_openvino(scheme: str, tmp_path: Path) -> None:
    exporter: Exporter = get_exporter("openvino")
    graph = exporter.prepare(capture(Tied().eval(), EXAMPLE))
    recipe = Recipe("none", "nearest", Precision(weight_bits=4))
    candidate, legalized = build(graph, exporter, scheme, recipe, {}, Rounding(), (), tmp_path)
    assert candidate.rejected == ()
    assert not candidate.read_back.missing
    assert not candidate.read_back.extra
    table = legalized.plan.tensors["tokens.weight"]
    assert (table.bits, table.uniform.scale.shape) == (4, (ROWS, 1))
    weights = candidate.path.with_suffix(".bin").stat().st_size
    assert weights < ROWS * WIDTH * (0.5 + 4 / 64) + 2 * WIDTH**2, "once, and packed"
    model = open_model(candidate.path)
    picked, logits = model.run(*INPUTS)
    simulated = [t.numpy() for t in legalized.simulation(*map(torch.from_numpy, INPUTS))]
    assert np.allclose(picked, simulated[0], rtol=0, atol=1e-6)
    assert np.abs(logits - simulated[1]).max() < 0.02 * np.abs(logits).max()
    kernels = [op.op for op in model.execution().ops if "linear" in " ".join(op.covers)]
    assert "MatMul" not in kernels, "the kernel that reads 4 bits is the one of fully connected layers"


def test_whole_number_inputs_keep_their_type() -> None:
    assert [x.dtype for x in example_of(capture(Tied().eval(), EXAMPLE))] == [torch.int32, torch.int32]
