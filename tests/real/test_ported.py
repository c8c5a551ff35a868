"""The int8 files of MLPerf Tiny as C: each operation within a step of LiteRT's, the same labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.cli.main import main
from edgeq.data import open_images
from edgeq.exporters.tflite.integers import read_integers
from edgeq.graph.intgraph.graph import AveragePool, FullyConnected, Softmax
from edgeq.graph.intgraph.interpret import interpret, run_op

pytestmark = pytest.mark.real
FILES = ("kws_ref_model", "vww_96_int8", "pretrainedResnet_quant", "ad01_int8")


def reference(path: Path) -> Any:
    """LiteRT's reference kernels, every tensor kept."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    made = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF, experimental_preserve_all_tensors=True
    )
    made.allocate_tensors()
    return made


@pytest.mark.parametrize("name", FILES)
def test_each_operation_is_within_a_step_of_the_reference_kernels(name: str, real_data: Path) -> None:
    path = real_data / "mcu" / f"{name}.tflite"
    graph, theirs = read_integers(path), reference(path)
    source = graph.tensors[graph.inputs[0].tensor]
    codes = np.random.default_rng(0).integers(-128, 128, source.size).astype(np.int8)
    theirs.set_tensor(theirs.get_input_details()[0]["index"], codes.reshape(graph.inputs[0].shape))
    theirs.invoke()
    values = {d["name"]: theirs.get_tensor(d["index"]).ravel() for d in theirs.get_tensor_details() if d["shape"].size}
    for op in graph.ops:
        found = run_op(graph.tensors, op, [values[n] for n in op.inputs]).astype(int)
        gap = np.abs(found - values[op.output])
        # A table of powers stands for the exponential of a softmax.
        assert gap.max() <= (2 if isinstance(op, Softmax) else 1), op.name
        if not isinstance(op, (Softmax, AveragePool, FullyConnected)):
            assert (gap > 0).mean() < 0.02, op.name


def test_the_labels_of_a_real_classifier_stay(real_data: Path) -> None:
    path = real_data / "mcu" / "pretrainedResnet_quant.tflite"
    graph, theirs = read_integers(path), reference(path)
    source = open_images(real_data / "cifar10" / "test.npz", role="evaluation")
    same = hits = theirs_hit = told = 0
    for index in range(200):
        pixels = np.asarray(source.read(index), np.int64)
        codes = (pixels - 128).astype(np.int8)
        theirs.set_tensor(theirs.get_input_details()[0]["index"], codes[None])
        theirs.invoke()
        wanted = int(theirs.get_tensor(theirs.get_output_details()[0]["index"]).argmax())
        found = int(interpret(graph, [codes.ravel()])[0].argmax())
        label = source.items[index].label
        same, told = same + (found == wanted), told + 1
        hits, theirs_hit = hits + (found == label), theirs_hit + (wanted == label)
    # LiteRT's own sets of kernels agree on 95 to 97 % of these images.
    assert same >= 0.93 * told and abs(hits - theirs_hit) <= 0.03 * told


def test_an_export_compares_runs_and_repeats(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = real_data / "mcu" / "kws_ref_model.tflite", tmp_path / "out"
    words = ["export", str(path), "--device", "nucleo-f446re", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["ported"]["agreement"] == 1 and summary["microcontroller"]["exact"] in (True, None)
    assert summary["microcontroller"]["ram_bytes"] < 18_000
    assert main(["reproduce", str(out), "--model", str(path)]) == 0
    assert main(["inspect", str(out)]) == main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert main(["verify", str(out), "--on", "local"]) == 0
