"""Networks of integers as files: the same network, the same bytes, and damage is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeq.devices import open_model
from edgeq.errors import DataError, ModelError
from edgeq.graph.intgraph.file import load, save
from edgeq.graph.intgraph.interpret import dequantize_output, interpret
from edgeq.spec import Precision
from tests.unit.graph.intgraphs import SmallAttention, SmallCnn, codes_of, lowered, noise

NETWORKS = {"cnn": (SmallCnn, (1, 3, 19, 17)), "attention": (SmallAttention, (1, 7, 12))}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_network_comes_back_as_it_was(name: str, bits: int, tmp_path: Path) -> None:
    made, shape = NETWORKS[name]
    samples = noise(*shape)
    graph = lowered(made().eval(), samples, Precision(bits, 8))
    save(graph, tmp_path / "a.intgraph")
    again = load(tmp_path / "a.intgraph")
    save(again, tmp_path / "b.intgraph")
    assert (tmp_path / "a.intgraph").read_bytes() == (tmp_path / "b.intgraph").read_bytes()
    for codes in codes_of(graph, samples):
        for first, second in zip(interpret(graph, codes), interpret(again, codes), strict=True):
            assert first.dtype == second.dtype
            assert np.array_equal(first, second)
    assert [op.name for op in graph.ops] == [op.name for op in again.ops]
    assert graph.tensors == again.tensors


def test_the_runtime_takes_and_gives_reals(tmp_path: Path) -> None:
    samples = noise(1, 6)
    graph = lowered(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), samples)
    save(graph, tmp_path / "model.intgraph")
    model = open_model(tmp_path / "model.intgraph")
    x = samples[0][0].numpy()
    expected = dequantize_output(graph, graph.outputs[0], interpret(graph, codes_of(graph, samples)[0])[0])
    assert np.array_equal(model.run(x)[0], expected)
    assert {op.kernel for op in model.execution().ops} == {"C99"}
    with pytest.raises(DataError) as refused:
        model.run(x, x)
    assert refused.value.code == "EQ-D600"
    with pytest.raises(DataError):
        model.run(np.full((1, 6), np.nan, np.float32))


@settings(max_examples=30)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
def test_damage_is_an_error_or_harmless(
    place: int, value: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "whole.intgraph"
    if not whole.exists():
        save(lowered(nn.Linear(4, 3).eval(), noise(1, 4)), whole)
    content = bytearray(whole.read_bytes())
    place %= len(content)
    content[place] = value
    (folder / "damaged.intgraph").write_bytes(content[:place] if cut else content)
    try:
        load(folder / "damaged.intgraph")
    except ModelError as error:
        assert error.code == "EQ-M600"


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", structure=np.frombuffer(b'{"schema": "other/1"}', np.uint8))
    (tmp_path / "text.intgraph").write_text("no zip")
    for name in ("other.npz", "text.intgraph", "absent.intgraph"):
        with pytest.raises(ModelError) as refused:
            load(tmp_path / name)
        assert refused.value.code == "EQ-M600"
