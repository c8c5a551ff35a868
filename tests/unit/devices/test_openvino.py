"""The OpenVINO runner against numpy, broken files, and the table of runtimes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeq.artifact import run
from edgeq.devices import RUNTIMES, open_model
from edgeq.devices.litert import LiteRtModel
from edgeq.devices.openvino import DEFAULTS, OpenVinoModel
from edgeq.errors import DataError, MissingError, ModelError, UsageError

IMAGE = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)


def expected(x: np.ndarray) -> np.ndarray:
    codes = np.random.default_rng(0).integers(-127, 128, (4, 8)).astype(np.float32)
    rounded = np.clip(np.rint(x / 0.02), -128, 127) * np.float32(0.02)
    return np.asarray(rounded @ (codes * np.float32(0.01)).T, dtype=np.float32)


def test_results_are_those_of_numpy(tiny_openvino: Path) -> None:
    model = OpenVinoModel(tiny_openvino)
    (found,) = model.run(IMAGE)
    np.testing.assert_allclose(found, expected(IMAGE), atol=1e-5)
    kept = found.copy()
    model.run(-IMAGE)
    np.testing.assert_array_equal(found, kept)
    model.prepare(IMAGE)
    model.invoke()
    np.testing.assert_array_equal(model.run(IMAGE)[0], kept)


def test_results_on_the_way_are_read(tiny_openvino: Path) -> None:
    model = OpenVinoModel(tiny_openvino)
    found = model.record({"layer/MatMul", "absent"}, IMAGE)
    assert set(found) == {"layer/MatMul"}, "an operation that is an output is held once"
    np.testing.assert_allclose(found["layer/MatMul"], model.run(IMAGE)[0], atol=1e-5)
    assert model.record({"absent"}, IMAGE) == {}


def test_execution_names_the_integer_kernel_and_the_layer(tiny_openvino: Path) -> None:
    execution = OpenVinoModel(tiny_openvino).execution()
    (product,) = [op for op in execution.ops if op.op == "FullyConnected"]
    assert product.integer
    assert product.kernel.lower().endswith("_i8")
    assert "layer" in product.covers
    assert execution.settings == DEFAULTS
    assert execution.to_dict()["kernels"][f"FullyConnected {product.kernel}"] == 1


def test_options_in_the_file_are_obeyed_and_told(tiny_openvino: Path, tmp_path: Path) -> None:
    import openvino

    model = openvino.Core().read_model(tiny_openvino)
    model.set_rt_info("64", [run.OPTIONS, "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    openvino.save_model(model, tmp_path / "m.xml")
    loaded = OpenVinoModel(tmp_path / "m.xml")
    assert loaded.execution().settings == {**DEFAULTS, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"}


def test_the_runner_obeys_the_file_where_the_manifest_says_nothing(tiny_openvino: Path, tmp_path: Path) -> None:
    """Float bundles and probes of a search have no options; where the CPU has bfloat16, OpenVINO would take that."""
    import openvino

    model = openvino.Core().read_model(tiny_openvino)
    for name, value in {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"}.items():
        model.set_rt_info(value, [run.OPTIONS, name])
    openvino.save_model(model, tmp_path / "m.xml")
    for settings, group in (({}, 64), ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}, 0)):
        compiled = run.OpenVino(tmp_path / "m.xml", 1, settings).request.get_compiled_model()
        assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
        assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == group


@pytest.mark.parametrize("array", [np.zeros((1, 9), np.float32), np.full((1, 8), np.nan), np.array([["a"] * 8])])
def test_arrays_that_do_not_fit(tiny_openvino: Path, array: np.ndarray) -> None:
    with pytest.raises(DataError) as caught:
        OpenVinoModel(tiny_openvino).run(array)
    assert caught.value.code == "EQ-D400"


def test_wrong_count_and_threads(tiny_openvino: Path) -> None:
    with pytest.raises(DataError, match="1 inputs, got 0"):
        OpenVinoModel(tiny_openvino).run()
    with pytest.raises(UsageError):
        OpenVinoModel(tiny_openvino, threads=0)


def test_unusable_files(tiny_openvino: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file absent\.xml"):
        OpenVinoModel(tmp_path / "absent.xml")
    shutil.copy(tiny_openvino, tmp_path / "alone.xml")
    with pytest.raises(ModelError, match=r"no file alone\.bin"):
        OpenVinoModel(tmp_path / "alone.xml")
    for content in (b"", b"<net", b"\x00\xff" * 100, tiny_openvino.read_bytes()[:300]):
        (tmp_path / "bad.xml").write_bytes(content)
        (tmp_path / "bad.bin").write_bytes(b"")
        with pytest.raises(ModelError) as caught:
            OpenVinoModel(tmp_path / "bad.xml")
        assert caught.value.code == "EQ-M401"


def test_missing_package(tiny_openvino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingError) as caught:
        OpenVinoModel(tiny_openvino)
    assert caught.value.hint == "pip install openvino"


def test_the_suffix_chooses_the_runtime(tiny_openvino: Path, tiny_int8: Path, tmp_path: Path) -> None:
    assert isinstance(open_model(tiny_openvino), OpenVinoModel)
    assert isinstance(open_model(tiny_int8, threads=2), LiteRtModel)
    assert open_model(str(tiny_int8)).execution().partitions == 1
    assert set(RUNTIMES) >= {"tflite", "openvino"}
    for name in ("model.onnx.txt", "model"):
        with pytest.raises(ModelError) as caught:
            open_model(tmp_path / name)
        assert caught.value.code == "EQ-M400"


def test_litert_execution_is_told_too(tiny_int8: Path) -> None:
    execution = LiteRtModel(tiny_int8).execution()
    assert execution.kernels() == {
        "CONV_2D XNNPACK": 1,
        "FULLY_CONNECTED XNNPACK": 1,
        "RESHAPE XNNPACK": 1,
        "TRANSPOSE XNNPACK": 2,
    }
    assert all(op.integer for op in execution.ops)
    assert execution.conversions == 0
