"""Detectors with real weights on real photos: heads, export, the bundle's own answer."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeq.data import open_boxes
from edgeq.graph.onnx_import import import_onnx
from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from edgeq.models.coco import mean_average_precision
from edgeq.models.yolo import cut_head
from edgeq.models.yolo_ultralytics import load_checkpoint
from tests.cli.test_export import edgeq

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture
def yolo(real_data: Path) -> Path:
    folder = real_data / "yolo"
    if not (folder / "yolox_nano.onnx").is_file():
        pytest.skip(f"no yolox_nano.onnx in {folder}")
    pytest.importorskip("pycocotools")
    return folder


@pytest.fixture
def nudenet() -> Path:
    spec = importlib.util.find_spec("nudenet")
    path = Path(spec.origin).parent / "320n.onnx" if spec and spec.origin else Path("none")
    if not path.is_file():
        pytest.skip("package nudenet is not installed: pip install --no-deps nudenet")
    return path


def part(yolo: Path, target: Path, chosen: slice) -> Path:
    """Some of the photos with their labels."""
    for photo in sorted((yolo / "images").iterdir())[chosen]:
        for file in (photo, yolo / "labels" / f"{photo.stem}.txt"):
            if file.is_file():
                (target / file.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / file.parent.name / file.name)
    return target


def test_yolox_nano_keeps_its_map_in_8_bits(yolo: Path, tmp_path: Path) -> None:
    calib, data = part(yolo, tmp_path / "c", slice(0, 48, 2)), part(yolo, tmp_path / "d", slice(1, 48, 2))
    out = tmp_path / "bundle"
    done = edgeq(
        *("export", str(yolo / "yolox_nano.onnx"), "--family", "yolo", "--device", "x86", "--scheme", "static"),
        *("--calib", str(calib), "--data", str(data), "--max-drop", "4", "--runs", "5", "--out", str(out), "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    metric = summary["metric"]
    assert metric["name"] == "mAP50-95"
    assert metric["n"] == 24
    assert metric["float"] > 25
    assert metric["quantized"] > metric["float"] - 4  # 24 photos resolve no less
    evidence = json.loads((out / "evidence.json").read_text())
    (candidate,) = evidence["candidates"]
    islands = candidate["islands"]
    assert "Conv_44" in islands["ops"]  # reads the stem, whose channels span 0.5 to 107
    assert islands["float_mac_share"] < 0.1
    assert {o["op"] for o in candidate["float_ops"] if "--keep-float" in o["reason"]} == {"conv2d"}
    assert summary["integer_mac_share"] > 0.9
    photo = sorted((data / "images").iterdir())[0]
    command = [sys.executable, str(out / "run.py"), str(photo), "--json"]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    boxes = answer["results"][0]["boxes"]
    adapter: Any = load_model(ModelRequest("yolo", "", yolo / "yolox_nano.onnx"))
    sample = open_boxes(data, 80).read(0)
    with torch.no_grad():
        outputs = [o.numpy() for o in adapter.loaded.graph(*map(torch.from_numpy, adapter.inputs(sample)))]
    shown = adapter.judge(outputs, sample, ())["shown"]
    assert abs(len(boxes) - len(shown)) <= 3
    assert boxes[0]["label"] in {adapter.head["names"][int(k)] for *_, k in shown}


def test_yolox_nano_in_float_scores_what_it_should(yolo: Path) -> None:
    adapter: Any = load_model(ModelRequest("yolo", "", yolo / "yolox_nano.onnx"))
    assert adapter.head["names"][0] == "person"
    source = adapter.open(yolo, "evaluation")
    assert len(source) == 128
    records = []
    for index in range(0, 128, 4):
        sample = source.read(index)
        with torch.no_grad():
            outputs = [o.numpy() for o in adapter.loaded.graph(*map(torch.from_numpy, adapter.inputs(sample)))]
        records.append(adapter.judge(outputs, sample, source.items[index].label))
    assert 28 < mean_average_precision(records) < 45
    assert mean_average_precision(records, slice(1)) > 45


def test_ultralytics_architecture_with_real_weights_is_the_onnx_file(nudenet: Path, tmp_path: Path) -> None:
    """The weights of an ONNX file, with its batch norms folded, in the architecture they came from."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("ultralytics")
    state: dict[str, torch.Tensor] = {}
    for tensor in onnx.load(nudenet).graph.initializer:
        name = tensor.name
        if not name.startswith("model.") or not name.endswith((".weight", ".bias")):
            continue
        value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        stem, folded, kind = name.rpartition(".conv.")
        if not folded or "dfl" in name:
            state[name] = value
        elif kind == "weight":
            state[name] = value
            state[f"{stem}.bn.weight"] = torch.full((len(value),), (1 + 1e-3) ** 0.5)
            state[f"{stem}.bn.running_mean"] = torch.zeros(len(value))
            state[f"{stem}.bn.running_var"] = torch.ones(len(value))
        else:
            state[f"{stem}.bn.bias"] = value
    path = tmp_path / "320n.pt"
    torch.save(state, path)
    built, names, _, source = load_checkpoint(ModelRequest("yolo", "yolov8n", path))
    assert (names, source) == (None, "320n.pt")
    read = import_onnx(nudenet, {"images": (1, 3, 640, 640)}).graph
    x = torch.rand(1, 3, 640, 640)
    with torch.no_grad():
        (ours,), (theirs,) = built(x), read(x)
    assert ours.shape == (1, 22, 8400)
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max()))
    head = cut_head(built, "320n")[1]
    assert (head["decode"], head["classes"], head["strides"]) == ("bins", 18, [8, 16, 32])
