"""Side by side: outputs in any order, bad company, labels, failed peers. Random weights: this is about plumbing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.artifact import Artifact
from edgeq.compare import Contender, Inputs, compare, match_outputs, open_contenders, open_inputs
from edgeq.errors import DataError, InputError, UsageError
from edgeq.progress import Silent

GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.normal(size=(8, 4)).astype(np.float32)
ITEMS = GENERATOR.normal(size=(6, 1, 8)).astype(np.float32)
INPUTS = Inputs("items", 6, lambda i: (ITEMS[i],))


def model(path: Path, *, noise: float = 0.0, swapped: bool = False, width: int = 8) -> Path:
    """Two products of one input, with weights a little off, in either order."""
    weight = WEIGHT[:width] + noise * np.random.default_rng(1).normal(size=(width, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("y", "z")]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])],
        outputs[::-1] if swapped else outputs,
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def run(*paths: Path, inputs: Inputs = INPUTS) -> Any:
    return compare(open_contenders(paths), inputs, threads=1, runs=3, progress=Silent())


def test_the_order_of_outputs_does_not_matter(tmp_path: Path) -> None:
    first = model(tmp_path / "a.onnx")
    rows = run(first, model(tmp_path / "b.onnx", noise=0.01), model(tmp_path / "c.onnx", noise=0.01, swapped=True)).rows
    assert rows[0].fidelity is None
    assert rows[0].latency is None
    assert rows[1].fidelity.median == pytest.approx(rows[2].fidelity.median)
    assert 25 < rows[1].fidelity.median < 60
    assert rows[1].latency.runs == 3


def test_the_same_model_twice_is_equal(tmp_path: Path) -> None:
    first = model(tmp_path / "a.onnx")
    done = run(first, first)
    assert [row.contender.name for row in done.rows] == ["1 a.onnx", "2 a.onnx"]
    assert done.rows[1].fidelity.median == np.inf
    data = json.loads(json.dumps(done.to_dict()))
    assert data["schema"] == "edgeq.compare/1"
    assert data["rows"][1]["sqnr_db"]["median"] is None
    assert data["rows"][1]["latency"]["runs"] == 3


def test_labels_give_top_1_with_an_interval(tmp_path: Path) -> None:
    labels = tuple(int(np.argmax(item @ WEIGHT)) for item in ITEMS)
    inputs = Inputs("labelled", 6, INPUTS.read, labels)
    rows = run(model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx", noise=3.0), inputs=inputs).rows
    assert rows[0].score.value == 100
    assert rows[1].score.value < 100
    low, high = rows[1].score.difference
    assert low <= rows[1].score.value - 100 <= high


def test_names_are_as_long_as_needed(tmp_path: Path) -> None:
    for name in ("p", "q"):
        (tmp_path / name).mkdir()
        model(tmp_path / name / "m.onnx")
    names = [c.name for c in open_contenders([tmp_path / "p" / "m.onnx", tmp_path / "q" / "m.onnx"])]
    assert names == ["p/m.onnx", "q/m.onnx"]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    first = model(tmp_path / "a.onnx")
    with pytest.raises(UsageError) as caught:
        open_contenders([first])
    assert caught.value.code == "EQ-U452"
    (tmp_path / "notes.txt").write_text("x")
    for bad in (tmp_path / "absent.onnx", tmp_path / "notes.txt"):
        with pytest.raises(InputError) as wrong:
            open_contenders([first, bad])
        assert wrong.value.code == "EQ-I450"
    with pytest.raises(InputError) as wrong:
        open_contenders([first, tmp_path])  # a folder, no bundle
    assert wrong.value.code == "EQ-I040"
    with pytest.raises(DataError) as shape:
        run(first, model(tmp_path / "narrow.onnx", width=5))
    assert shape.value.code == "EQ-D450"
    with pytest.raises(InputError) as outputs:
        match_outputs([np.zeros((1, 4))], [np.zeros((1, 5))], "other")
    assert outputs.value.code == "EQ-I451"


def test_bare_files_need_a_bundle_that_says_how_images_become_inputs(tmp_path: Path) -> None:
    contenders = open_contenders([model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx")])
    with pytest.raises(UsageError) as caught:
        open_inputs(contenders, None)
    assert caught.value.code == "EQ-U453"
    takes_arrays = SimpleNamespace(preprocess=None)
    with pytest.raises(DataError) as wrong:
        open_inputs([Contender("a", tmp_path / "a.onnx", cast(Artifact, takes_arrays))], tmp_path)
    assert wrong.value.code == "EQ-D451"


def test_golden_vectors_where_no_data_is_given(tmp_path: Path) -> None:
    golden = SimpleNamespace(inputs=(ITEMS,))
    bundle = cast(Artifact, SimpleNamespace(preprocess=None, golden=lambda: golden))
    contender = Contender("a", model(tmp_path / "a.onnx"), bundle)
    assert open_inputs([contender], None).count == 6
    limited = open_inputs([contender], None, limit=2)
    assert limited.count == 2
    np.testing.assert_array_equal(limited.read(1)[0], ITEMS[1])


def test_a_failed_peer_keeps_its_row(tmp_path: Path) -> None:
    contenders = [Contender("a", model(tmp_path / "a.onnx")), Contender("peer", tmp_path / "x", failed="failed: why")]
    done = compare(contenders, INPUTS, threads=1, runs=2, progress=Silent())
    assert done.rows[1].to_dict() == {
        **{"name": "peer", "file": "x", "format": None, "failed": "failed: why", "bytes": 0},
        **{"sqnr_db": None, "score": None, "latency": None},
    }
    assert done.first_ms is None
