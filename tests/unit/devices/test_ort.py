"""The onnxruntime runner against numpy, broken files, and CPUs with and without byte dot products."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.devices import open_model
from edgeq.devices.ort import OrtModel, settings_for
from edgeq.errors import DataError, MissingError, ModelError, UsageError

IMAGE = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
CODES = np.random.default_rng(0).integers(-127, 128, (8, 4)).astype(np.int8)


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`x (1, 8)` on a grid, times an int8 matrix: one integer product; and the same in float."""
    values: dict[str, object] = {
        "s": np.float32(0.02),
        "z": np.uint8(128),
        "w": CODES,
        "ws": np.full(4, 0.01, "f"),
        "wz": np.zeros(4, "i1"),
    }
    values["fw"] = np.ones((8, 4), "f")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1, name="weight"),
        helper.make_node("MatMul", ["d", "wd"], ["y"], name="layer"),
        helper.make_node("MatMul", ["x", "fw"], ["f"], name="float_layer"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("y", "f")],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()],
    )
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def test_results_are_those_of_numpy(tiny_onnx: Path) -> None:
    model = open_model(tiny_onnx)
    assert isinstance(model, OrtModel)
    assert (model.inputs[0].shape, model.outputs[0].name) == ((1, 8), "y")
    found, _ = model.run(IMAGE)
    rounded = np.clip(np.rint(IMAGE / np.float32(0.02)), -128, 127) * np.float32(0.02)
    np.testing.assert_allclose(found, rounded @ (CODES * np.float32(0.01)), atol=1e-5)
    kept = found.copy()
    model.run(-IMAGE)
    np.testing.assert_array_equal(found, kept)
    model.prepare(IMAGE)
    model.invoke()


def test_tensors_on_the_way_are_read(tiny_onnx: Path) -> None:
    model = OrtModel(tiny_onnx)
    outputs = dict(zip([port.name for port in model.outputs], model.run(IMAGE), strict=True))
    found = model.record({"d", "y", "absent"}, IMAGE)
    assert set(found) == {"d", "y"}
    np.testing.assert_allclose(found["d"], np.clip(np.rint(IMAGE / 0.02), -128, 127) * np.float32(0.02), atol=1e-6)
    np.testing.assert_allclose(found["y"], outputs["y"], atol=1e-5)


def test_execution_tells_integer_from_float(tiny_onnx: Path) -> None:
    execution = OrtModel(tiny_onnx).execution()
    kinds = {covered: op.integer for op in execution.ops for covered in op.covers}
    assert kinds["layer"]
    assert not kinds["float_layer"]
    assert execution.kernels()["MatMulIntegerToFloat CPU"] == 1
    assert execution.conversions >= 1


@pytest.mark.parametrize(
    "array", [np.zeros((1, 9), np.float32), np.full((1, 8), np.nan, np.float32), np.zeros((1, 8), np.int64)]
)
def test_arrays_that_do_not_fit(tiny_onnx: Path, array: np.ndarray) -> None:
    with pytest.raises(DataError) as caught:
        OrtModel(tiny_onnx).run(array)
    assert caught.value.code == "EQ-D450"


def test_wrong_count_and_threads(tiny_onnx: Path) -> None:
    with pytest.raises(DataError, match="1 inputs"):
        OrtModel(tiny_onnx).run()
    with pytest.raises(UsageError):
        OrtModel(tiny_onnx, threads=0)


def test_unusable_files(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        OrtModel(tmp_path / "absent.onnx")
    assert caught.value.code == "EQ-M453"
    for content in (b"", b"<net", b"\x00\xff" * 100, tiny_onnx.read_bytes()[:200]):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ModelError) as caught:
            OrtModel(tmp_path / "bad.onnx")
        assert caught.value.code == "EQ-M454"


def test_shapes_must_be_fixed(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(str(tiny_onnx))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, str(tmp_path / "open.onnx"))
    with pytest.raises(ModelError, match="fixed shapes"):
        OrtModel(tmp_path / "open.onnx")


def test_missing_packages(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OrtModel(tiny_onnx)
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda n, *a, **k: real("no_such_" + n if n == "onnx" else n, *a, **k))
    with pytest.raises(MissingError) as caught:
        model.execution()
    assert caught.value.code == "EQ-P451"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError) as caught:
        OrtModel(tiny_onnx)
    assert caught.value.hint == "pip install onnxruntime"


def test_cpus_without_byte_dot_products_widen_the_products(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_for({"avx2", "fma"}) == {"session.x64quantprecision": "1"}
    assert settings_for({"avx2", "avx_vnni"}) == settings_for({"asimd"}) == {}
    expected = OrtModel(tiny_onnx).run(IMAGE)[0]
    monkeypatch.setattr("edgeq.devices.ort.settings_for", lambda isa: {"session.x64quantprecision": "1"})
    np.testing.assert_allclose(OrtModel(tiny_onnx).run(IMAGE)[0], expected, atol=1e-5)
