"""4-bit weights on groups in .tflite files. Random weights: integers, kernels and arithmetic, no quality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.devices.litert import Kernels, LiteRtModel
from edgeq.errors import ModelError
from edgeq.exporters import get_exporter
from edgeq.exporters.tflite.flatbuffer import TfliteFile
from edgeq.exporters.tflite.groups import LEAST_VERSION
from edgeq.exporters.tflite.readback import read_tflite
from edgeq.graph.capture import capture
from edgeq.graph.legalize import Legalized, legalize
from edgeq.recipe import place_scheme
from edgeq.spec import PerGroup, Precision, QuantPlan

TOKENS = 3000


class Spoken(nn.Module):
    """A vocabulary that is read twice, layers on groups, equal ones among them, and one whose rows are no groups."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, 128)
        self.first, self.twin, self.second = nn.Linear(128, 192), nn.Linear(128, 192), nn.Linear(192, 128)
        self.twin.weight.data = 2 * self.first.weight.data
        self.odd = nn.Linear(128, 100)
        self.back = nn.Linear(100, 128)

    def forward(self, token: Tensor) -> Tensor:
        x = self.tokens(token)
        x = x + self.second(nn.functional.gelu(self.first(x)) + self.twin(x))
        x = x + self.back(nn.functional.gelu(self.odd(x)))
        return nn.functional.linear(x, self.tokens.weight)


Made = tuple[fx.GraphModule, Legalized, Path]


def made(folder: Path, kept: tuple[str, ...] = ()) -> Made:
    torch.manual_seed(0)
    exporter, example = get_exporter("tflite"), (torch.zeros(1, dtype=torch.int32),)
    graph = exporter.prepare(capture(Spoken().eval(), example))
    config, placement = place_scheme(graph, exporter, "dynamic", Precision(4, keep_float=kept))
    legalized = legalize(graph, placement, config, exporter.rules, {}, "dynamic")
    path = folder / "model.tflite"
    exporter.emit(legalized.emission, example, legalized.plan, path)
    return graph, legalized, path


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("groups"))


def test_the_file_holds_the_codes_and_scales_of_the_plan_once(spoken: Made) -> None:
    _, legalized, path = spoken
    found = get_exporter("tflite").read_back(path, legalized)
    assert not found.missing and not found.extra
    grouped = {t.name for t in legalized.plan.weights() if isinstance(t.uniform.spec.granularity, PerGroup)}
    assert grouped == {"tokens.weight", "first.weight", "twin.weight", "second.weight", "odd.weight"}
    assert found.census()["FULLY_CONNECTED dynamic"] == 6
    assert found.census()["EMBEDDING_LOOKUP float"] == 1
    file = TfliteFile.read(path)
    model, schema = file.model, file.schema
    fours = [t for t in model.subgraphs[0].tensors if t.type == schema.TensorType.INT4]
    assert sorted(int(np.prod(t.shape)) for t in fours).count(TOKENS * 128) == 1, "the vocabulary is stored once"
    values = sum(int(np.prod(t.shape)) for t in fours)
    assert path.stat().st_size < 0.6 * values + 20_000


def test_equal_codes_on_other_scales_are_told_apart(spoken: Made) -> None:
    plan = spoken[1].plan
    first, twin = plan.tensors["first.weight"], plan.tensors["twin.weight"]
    assert first.codes_sha256 == twin.codes_sha256
    np.testing.assert_array_equal(2 * first.uniform.scale, twin.uniform.scale)


def test_reference_kernels_are_refused(spoken: Made) -> None:
    with pytest.raises(ModelError, match="group") as caught:
        LiteRtModel(spoken[2], kernels="reference")
    assert caught.value.code == "EQ-M970"


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
def test_kernels_compute_what_is_simulated(spoken: Made, kernels: Kernels) -> None:
    _, legalized, path = spoken
    model = LiteRtModel(path, kernels=kernels)
    for token in (0, 7, TOKENS - 1):
        outputs = model.run_all(np.array([token], np.int32))
        (wanted,) = legalized.simulation(torch.tensor([token], dtype=torch.int32))
        (row,) = [v for v in outputs.values() if v.shape == (1, 128)][:1]
        grid = legalized.plan.tensors["tokens.weight"].uniform
        codes = read_tflite(path, legalized.plan).weights["tokens.weight"][token]
        np.testing.assert_allclose(row[0], (codes.reshape(-1, 64) * grid.scale[token][:, None]).ravel(), rtol=1e-6)
        (got,) = model.run(np.array([token], np.int32))
        # LiteRT's own kernel for weights with a scale per channel quantizes inputs in another way.
        error = np.abs(got - wanted.detach().numpy()).max() / np.abs(got).max()
        assert error < (1e-5 if kernels == "xnnpack" else 1e-2)


def test_the_delegate_runs_every_layer(spoken: Made) -> None:
    ops = LiteRtModel(spoken[2]).ops
    layers = [op for op in ops if op.name == "FULLY_CONNECTED"]
    assert len(layers) == 6
    assert all(op.delegated for op in layers)


def test_runtimes_that_know_no_groups_refuse_the_file(spoken: Made, tmp_path: Path) -> None:
    file = TfliteFile.read(spoken[2])
    model, schema = file.model, file.schema
    codes = [c for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED]
    assert [c.version for c in codes] == [LEAST_VERSION]
    codes[0].version = 99  # stands for a runtime that is older than the file
    file.write(tmp_path / "newer.tflite")
    with pytest.raises(ModelError) as caught:
        LiteRtModel(tmp_path / "newer.tflite")
    assert "-U ai-edge-litert" in str(caught.value.hint)


def test_one_wrong_scale_is_noticed(spoken: Made) -> None:
    _, legalized, path = spoken
    tensors = dict(legalized.plan.tensors)
    entry = tensors["second.weight"]
    scale = entry.uniform.scale.copy()
    scale[0, 0] *= 129 / 128
    tensors["second.weight"] = replace(entry, qparams=replace(entry.uniform, scale=scale))
    found = read_tflite(path, QuantPlan("dynamic", tensors, legalized.plan.ops))
    assert found.missing == ("second.weight",)


def test_layers_kept_float_stay_float_beside_groups(tmp_path: Path) -> None:
    graph, legalized, path = made(tmp_path, kept=("second",))
    assert legalized.plan.ops["second"].mode == "float"
    found = get_exporter("tflite").read_back(path, legalized)
    assert not found.missing and not found.extra
    assert found.census()["FULLY_CONNECTED float"] == 1
    (got,) = LiteRtModel(path).run(np.array([5], np.int32))
    (wanted,) = legalized.simulation(torch.tensor([5], dtype=torch.int32))
    np.testing.assert_allclose(got, wanted.detach().numpy(), atol=1e-5 * np.abs(got).max())
    assert graph is not legalized.emission


def test_a_file_is_the_same_again(spoken: Made, tmp_path: Path) -> None:
    assert made(tmp_path)[2].read_bytes() == spoken[2].read_bytes()
