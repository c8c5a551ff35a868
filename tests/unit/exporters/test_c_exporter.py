"""The C exporter: integers read back equal the plan, what it cannot run is named, memory is known beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeq.errors import InternalError, ModelError, UsageError
from edgeq.exporters import get_exporter
from edgeq.exporters.c.exporter import CExporter
from edgeq.exporters.c.memory import memory_of
from edgeq.graph.capture import capture
from edgeq.graph.intgraph.file import load
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.spec import Precision, codes_hash
from tests.unit.exporters.test_c_project import project
from tests.unit.graph.intgraphs import Sample, SmallAttention, SmallCnn, noise

NETWORKS = {"cnn": (SmallCnn, (1, 3, 19, 17)), "attention": (SmallAttention, (1, 7, 12))}


def exported(name: str, bits: int, path: Path) -> tuple[Legalized, list[Sample]]:
    made, shape = NETWORKS[name]
    samples = noise(*shape)
    exporter = get_exporter("c")
    graph = exporter.prepare(capture(made().eval(), samples[0]))
    config, placement = place_scheme(graph, exporter, "integer", Precision(bits, 8))
    statistics = calibrate(graph, observed(graph, placement), iter(samples))
    form = legalize(graph, placement, config, exporter.rules, statistics, "integer")
    exporter.emit(form.emission, samples[0], form.plan, path)
    return form, samples


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_integers_read_back_equal_the_plan(name: str, bits: int, tmp_path: Path) -> None:
    form, _ = exported(name, bits, tmp_path / "model.intgraph")
    found = CExporter().read_back(tmp_path / "model.intgraph", form)
    assert not found.missing and not found.extra
    assert {n: codes_hash(codes) for n, codes in found.weights.items()} == {
        t.name: t.codes_sha256 for t in form.plan.weights()
    }
    assert found.integer_mac_share == 1
    assert found.memory is not None and found.memory.arena >= found.memory.arena_bound > 0


def test_other_weights_are_seen(tmp_path: Path) -> None:
    form, _ = exported("attention", 8, tmp_path / "model.intgraph")
    attribute = form.plan.weights()[0].name
    with torch.no_grad():
        form.emission.get_parameter(attribute).add_(form.plan.tensors[attribute].uniform.scale.min().item())
    with pytest.raises(InternalError):  # the plan's hash is checked while lowering
        CExporter().emit(form.emission, (), form.plan, tmp_path / "other.intgraph")
    other, _ = exported("cnn", 8, tmp_path / "cnn.intgraph")
    found = CExporter().read_back(tmp_path / "cnn.intgraph", form)
    assert len(found.missing) == len(form.plan.weights()) and len(found.extra) == len(other.plan.weights())


def test_memory_is_what_the_project_says(tmp_path: Path) -> None:
    _, samples = exported("cnn", 4, tmp_path / "model.intgraph")
    graph = load(tmp_path / "model.intgraph")
    memory = memory_of(graph)
    assert project(graph, samples, tmp_path / "c").memory == memory
    text = next((tmp_path / "c").glob("*_weights.c")).read_text()
    widths = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4}
    declared = [line.split() for line in text.splitlines() if " const " in line and line.endswith("= {")]
    sizes = [widths[words[words.index("const") + 1]] * int(words[-3].split("[")[1][:-1]) for words in declared]
    assert sum(sizes) == memory.flash
    assert memory.largest[1] <= memory.flash and memory.widest[1] == memory.arena_bound


def test_operations_without_a_kernel_are_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x) + torch.cos(x) + torch.sin(2 * x)

    graph = capture(Odd(), noise(1, 4)[0])
    with pytest.raises(ModelError, match=r"2 .*sin.*1 .*cos") as refused:
        CExporter().prepare(graph)
    assert refused.value.code == "EQ-M601"


def test_there_is_one_scheme_and_no_float() -> None:
    with pytest.raises(UsageError) as refused:
        CExporter().config("static", Precision())
    assert refused.value.code == "EQ-U011"
    graph = capture(nn.Linear(2, 2), noise(1, 2)[0])
    with pytest.raises(InternalError) as bug:
        CExporter().emit(graph, (), None, Path("nowhere"))
    assert bug.value.code == "EQ-Z600"
