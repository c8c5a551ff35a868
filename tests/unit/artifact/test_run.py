"""`run.py` as a user on the board runs it: alone in the bundle's folder."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeq import detection
from edgeq.artifact import Artifact, describe_files, model_files, write_golden, write_json, write_runner
from edgeq.artifact import run as runner
from edgeq.data import decode, preprocess
from edgeq.devices import open_model
from edgeq.devices.litert import LiteRtModel
from edgeq.exporters.tflite.flatbuffer import TfliteFile
from edgeq.metrics import sqnr_db
from edgeq.spec import Preprocess
from tests.unit.artifact.conftest import MANIFEST, PREPROCESS, Builder


def call(bundle: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(bundle / "run.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=bundle.parent)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def answer(bundle: Path, *options: str, code: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(call(bundle, "--json", *options, code=code).stdout)
    assert result["schema"] == "edgeq.run/1"
    return result


def test_golden_vectors_hold_here(build: Builder, tmp_path: Path) -> None:
    bundle = build(tmp_path / "a")
    text = call(bundle).stdout
    assert "golden vectors: 4, largest difference 0, exact, same class in 100%" in text
    assert text.endswith("passed\n")
    golden = answer(bundle, "--threads", "2")["golden"]
    assert golden["passed"]
    assert golden["vectors"] == 4


def test_wrong_kernels_are_noticed(build: Builder, tmp_path: Path) -> None:
    bundle = build(tmp_path / "a")
    expected = bundle / "golden" / "expected.npz"
    with np.load(expected) as store:
        scores = store["output_0"]
    np.savez(expected, output_0=scores + 0.05)
    assert answer(bundle)["golden"]["max_difference"] == pytest.approx(0.05, abs=1e-6)
    np.savez(expected, output_0=-scores)
    assert not answer(bundle, code=1)["golden"]["passed"]
    assert "FAILED" in call(bundle, code=1).stdout
    np.savez(expected, output_0=np.full_like(scores, np.nan))
    assert not answer(bundle, code=1)["golden"]["passed"]


def test_image_gets_the_labels_that_edgeq_gives(build: Builder, tmp_path: Path) -> None:
    bundle = build(tmp_path / "a")
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(photo)
    (result,) = answer(bundle, str(photo))["results"]
    artifact = Artifact.open(bundle)
    assert artifact.preprocess is not None
    image = preprocess(decode(photo.read_bytes(), "photo.png"), artifact.preprocess)
    (scores,) = LiteRtModel(artifact.model_file).run(image[None])
    best = int(scores.argmax())
    labels = artifact.manifest.labels
    assert labels is not None
    assert (result["top"][0]["index"], result["top"][0]["label"]) == (best, labels[best])
    assert sum(entry["probability"] for entry in result["top"]) == pytest.approx(1)
    assert labels[best] in call(bundle, str(photo)).stdout


def test_outputs_of_other_models_are_summarized_and_saved(build: Builder, tmp_path: Path) -> None:
    bundle = build(tmp_path / "a", labels=None, preprocess=None)
    with np.load(bundle / "golden" / "inputs.npz") as store:
        np.save(tmp_path / "x.npy", store["input_0"][1])
    (result,) = answer(bundle, "x.npy", "--save", "out")["results"]
    assert result["outputs"][0]["shape"] == [1, 5]
    with np.load(tmp_path / "out" / "x.npz") as saved, np.load(bundle / "golden" / "expected.npz") as expected:
        np.testing.assert_array_equal(saved["output_0"], expected["output_0"][1])
    assert answer(bundle)["golden"]["agreement"] is None
    (tmp_path / "photo.png").write_bytes(b"")
    assert "takes no images" in call(bundle, "photo.png", code=3).stderr


def test_a_file_of_a_newer_runtime_says_what_to_install(build: Builder, tmp_path: Path) -> None:
    bundle = build(tmp_path / "a")
    file = TfliteFile.read(bundle / "model.tflite")
    for code in file.model.operatorCodes:
        code.version = 99
    file.write(bundle / "model.tflite")
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"] = [entry for entry in describe_files(bundle) if entry["path"] != "manifest.json"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    said = call(bundle, code=4).stderr
    assert "too old" in said and "pip install -U ai-edge-litert" in said


def test_bench_reports_percentiles(build: Builder, tmp_path: Path) -> None:
    latency = answer(build(tmp_path / "a"), "--bench", "20")["latency"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    assert latency["runs"] == 20


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("absent.jpg",), 3),
        (("text.jpg",), 3),
        (("wrong.npy",), 3),
        (("wrong.npz",), 3),
        (("pickle.npy",), 3),
        (("--bench", "0"), 2),
        (("--threads", "x"), 2),
        (("--save", "x"), 2),
        (("--nonsense",), 2),
    ],
)
def test_bad_input_is_one_line(build: Builder, tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    bundle = build(tmp_path / "a")
    (tmp_path / "text.jpg").write_text("no image")
    np.save(tmp_path / "wrong.npy", np.zeros((2, 2)))
    np.savez(tmp_path / "wrong.npz", other=np.zeros(2))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "error:" in call(bundle, *options, code=code).stderr


@pytest.mark.parametrize("name", ["model.tflite", "manifest.json", "golden/inputs.npz", "golden/expected.npz"])
def test_damaged_bundle_is_one_line(build: Builder, tmp_path: Path, name: str) -> None:
    bundle = build(tmp_path / "a")
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: len(content) // 2])
    assert "error:" in call(bundle, code=3).stderr
    (bundle / name).unlink()
    assert "error:" in call(bundle, code=3).stderr


def test_absent_packages_are_named(build: Builder, tmp_path: Path) -> None:
    bundle = build(tmp_path / "a")
    hide = (
        "import runpy, sys; sys.modules[{!r}] = None; sys.argv = ['run.py', {!r}]; runpy.run_path({!r}, run_name={!r})"
    )
    for package, option, words in (("PIL", "x.jpg", "pip install pillow"), ("numpy", "x.npy", "pip install numpy")):
        code = hide.format(package, option, str(bundle / "run.py"), "__main__")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("file", ["artifact/run.py", "detection.py", "depthmap.py"])
def test_runner_is_self_contained(root: Path, file: str) -> None:
    """Standard library, numpy and Pillow only, in the grammar of Python 3.9."""
    tree = ast.parse((root / "edgeq" / file).read_text(), feature_version=(3, 9))
    modules = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert modules - set(sys.stdlib_module_names) == ({"numpy"} if file == "detection.py" else {"numpy", "PIL"})


HOW = st.builds(
    Preprocess,
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    resize=st.sampled_from(["crop", "squash", "letterbox"]),
    fill=st.integers(0, 255),
    align=st.sampled_from(["center", "corner"]),
    channels=st.sampled_from(["rgb", "bgr"]),
    crop_fraction=st.sampled_from([1.0, 0.875, 0.9, 224 / 232]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)


@settings(deadline=None)
@given(HOW, st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_preprocessing_equals_edgeq_bit_for_bit(how: Preprocess, width: int, height: int, seed: int) -> None:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "HERE", Path(detection.__file__).parent)  # where a bundle has its copy
        found = runner.preprocess(image, json.loads(json.dumps(vars(how))))
    np.testing.assert_array_equal(found, preprocess(image, how))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "PA", "upright"])
def test_images_are_read_as_edgeq_reads_them(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    base = Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8), "RGBA")
    path = tmp_path / ("x.tif" if mode in ("CMYK", "PA") else "x.png")
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16)).save(path)
    elif mode == "PA":
        base.convert("P").save(path := tmp_path / "x.gif", transparency=3)
    elif mode == "upright":
        exif = Image.Exif()
        exif[0x0112] = 6
        base.convert("RGB").save(path, exif=exif)
    else:
        base.convert("RGB" if mode in ("P", "1", "CMYK") else mode).convert(mode).save(path)
    expected = decode(path.read_bytes(), path.name)
    np.testing.assert_array_equal(np.asarray(runner.read_rgb(path)), np.asarray(expected))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=9), st.floats(-3, 3))
def test_sqnr_is_that_of_edgeq(values: list[float], shift: float) -> None:
    expected = np.array(values, dtype=np.float32)
    found = expected + np.float32(shift)
    # the same formula in another order of operations: equal up to the last bits of a double
    assert runner.sqnr_db(expected, found) == pytest.approx(sqnr_db(expected, found), rel=1e-9, abs=1e-9)


def test_an_openvino_bundle_runs_with_the_recorded_options(tiny_openvino: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "a"
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    write_bundle(bundle, tiny_openvino, (1, 8), settings)
    golden = answer(bundle)["golden"]
    assert golden["passed"]
    assert golden["exact"]
    assert answer(bundle, "--bench", "5")["latency"]["runs"] == 5
    np.save(tmp_path / "x.npy", np.zeros((1, 9), np.float32))
    assert "must have shape (1, 8)" in call(bundle, "x.npy", code=3).stderr
    (bundle / "model.bin").write_bytes(b"")
    assert "model.bin is not the file that was exported" in call(bundle, code=3).stderr
    write_bundle(tmp_path / "b", tiny_openvino, (1, 8), {"INFERENCE_PRECISION_HINT": "none such"})
    assert "cannot be loaded" in call(tmp_path / "b", code=3).stderr


def test_an_onnx_bundle_runs(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    x = onnx.helper.make_tensor_value_info("x", 1, [1, 8])
    y = onnx.helper.make_tensor_value_info("y", 1, [1, 8])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Softmax", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    bundle = tmp_path / "a"
    write_bundle(bundle, tmp_path / "model.onnx", (1, 8), {}, softmax)
    assert answer(bundle)["golden"]["max_difference"] < 1e-6
    assert answer(bundle, "--bench", "5")["latency"]["p50"] > 0


def softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(x) / np.exp(x).sum(-1, keepdims=True), dtype=np.float32)


def write_bundle(
    folder: Path,
    source: Path,
    shape: tuple[int, ...],
    settings: dict[str, str],
    function: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """A bundle around a model file; `function` gives its results where edgeq has no runtime for it."""
    folder.mkdir()
    for file in model_files(source):
        shutil.copyfile(file, folder / file.name)
    inputs = [(a,) for a in np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)]
    run = function or (lambda x: open_model(source).run(x)[0])
    write_golden(folder, inputs, [(run(x),) for (x,) in inputs])
    write_runner(folder)
    changes: dict[str, Any] = {"files": tuple(describe_files(folder)), "runtime": settings, "labels": None}
    write_json(folder / "manifest.json", replace(MANIFEST, preprocess=None, **changes).to_dict())
    assert Artifact.open(folder).model_file.name == source.name


HEAD = {
    "decode": "distances",
    "levels": [[0, 1]],
    "strides": [8],
    "suppress": True,
    "overlap": 0.5,
    "score": 0.25,
    "limit": 9,
    "names": ["ape", "bee"],
}
BOXED = {**PREPROCESS, "resize": "letterbox", "fill": 114, "align": "corner", "channels": "bgr"}


def test_a_detector_answers_with_boxes_in_the_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_runner(tmp_path, HEAD)
    assert (tmp_path / "detection.py").read_text() == Path(detection.__file__).read_text()
    monkeypatch.setattr(runner, "HERE", tmp_path)
    outputs = [np.full((1, 4, 1, 1), 0.5, np.float32), np.array([[[[-9.0]], [[9.0]]]], np.float32)]
    manifest = {"postprocess": HEAD, "preprocess": BOXED, "labels": None, "outputs": []}
    (box,) = runner.describe(outputs, manifest, (16, 12))["boxes"]
    assert (box["label"], box["corners"]) == ("bee", [0.0, 0.0, 16.0, 12.0])
    assert box["score"] == pytest.approx(1, abs=1e-3)
    assert runner.describe(outputs, manifest, None)["boxes"][0]["corners"] == [0.0, 0.0, 8.0, 8.0]
    (tmp_path / "detection.py").unlink()
    with pytest.raises(runner.Failure, match="copy the folder again"):
        runner.describe(outputs, manifest, (16, 12))
