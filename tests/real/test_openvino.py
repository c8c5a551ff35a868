"""Real networks through OpenVINO: a detector by the library, the ViT-S by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeq.candidate import _ran_float
from edgeq.devices import open_model
from edgeq.exporters import get_exporter
from edgeq.graph.legalize import legalize, observed
from edgeq.graph.onnx_import import import_onnx
from edgeq.metrics import sqnr_db
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from tests.cli.test_export import edgeq


def photo(path: Path) -> torch.Tensor:
    """A photo as YOLOX wants it: 416 x 416, BGR, 0 to 255."""
    pixels = np.asarray(Image.open(path).convert("RGB").resize((416, 416)), dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1)))[None]


@pytest.mark.real
def test_yolox_nano_runs_in_integers(real_data: Path, tmp_path: Path) -> None:
    model = real_data / "yolo" / "yolox_nano.onnx"
    files = sorted((real_data / "yolo" / "images").iterdir())
    if not model.is_file() or len(files) < 24:
        pytest.skip(f"no yolox_nano.onnx with photos in {real_data / 'yolo'}")
    exporter = get_exporter("openvino")
    imported = import_onnx(model)
    photos = [(photo(path),) for path in files[:24]]
    exporter.emit(imported.graph, photos[0], None, tmp_path / "float.xml")
    graph = exporter.prepare(imported.graph)
    config, placement = place_scheme(graph, exporter, "integer")
    statistics = calibrate(graph, observed(graph, placement), photos[:16])
    legalized = legalize(graph, placement, config, exporter.rules, statistics, "integer")
    path = tmp_path / "model.xml"
    exporter.emit(legalized.emission, photos[0], legalized.plan, path)

    read_back = exporter.read_back(path, legalized)
    assert not read_back.missing
    assert not read_back.extra
    assert read_back.integer_mac_share == 1
    exact, quantized = open_model(tmp_path / "float.xml"), open_model(path)
    assert _ran_float(read_back, quantized.execution()) == []
    held_out = [x.numpy() for (x,) in photos[16:]]
    found = [sqnr_db(exact.run(x)[0], quantized.run(x)[0]) for x in held_out]
    with torch.no_grad():
        predicted = [sqnr_db(exact.run(x)[0], legalized.simulation(torch.from_numpy(x))[0].numpy()) for x in held_out]
    # Min-max ranges are no good recipe for this detector (8 dB); the file is what the simulation says it is.
    assert abs(np.median(found) - np.median(predicted)) < 0.5


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_vit_s_integer_keeps_the_map_and_runs_in_integers(vit_s_focus: Path, real_data: Path, tmp_path: Path) -> None:
    photos = real_data / "yolo" / "images"
    words = [vit_s_focus, "--family", "vit", "--device", "x86", "--calib", photos, "--samples", "32"]
    more = ["--scheme", "integer", "--rounding", "nearest", "--runs", "12", "--json"]
    done = edgeq("export", *words, *more, cwd=tmp_path, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["fidelity"]["sqnr_db"]["median"] >= 28
    assert summary["integer_mac_share"] == 1
    assert summary["quantized_weights"] == 77
    assert summary["gates"]["passed"]
    assert summary["bytes"] <= 27e6


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_vit_s_with_four_bit_weights_on_groups_runs_in_the_same_kernels(
    vit_s_focus: Path, real_data: Path, tmp_path: Path
) -> None:
    words = [vit_s_focus, "--family", "vit", "--device", "x86", "--calib", real_data / "yolo" / "images"]
    words += ["--samples", "16", "--scheme", "integer", "--rounding", "nearest", "--bits", "w4a8", "--force"]
    done = edgeq("export", *words, "--learn-steps", "2", "--runs", "12", "--json", cwd=tmp_path, timeout=3500)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    bundle = tmp_path / summary["artifact"]
    tensors = json.loads((bundle / "plan.json").read_text())["tensors"]
    grids = [t["qparams"] for t in tensors if t["role"] == "weight"]
    multiples = [grid["multiple"] for grid in grids if "multiple" in grid]
    assert len(multiples) >= 48, "four layers of each of twelve blocks"
    assert {m for weight in multiples for row in weight for m in row} <= set(range(1, 19))
    (candidate,) = json.loads((bundle / "evidence.json").read_text())["candidates"]
    kernels = {name.split()[1].lower() for name in candidate["execution"]["kernels"] if name.startswith("FullyC")}
    assert kernels and all(kernel.endswith("_i8") for kernel in kernels), kernels
    assert summary["integer_mac_share"] == 1
    assert summary["bytes"] < 15e6
