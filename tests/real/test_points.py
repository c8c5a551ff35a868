"""PointMLP with its real weights on real clouds: the float score, an export, the bundle's own answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from tests.cli.test_export import edgeq

WEIGHTS = "pointmlp_elite_modelnet40.safetensors"

pytestmark = pytest.mark.real


@pytest.fixture
def clouds(real_data: Path) -> Path:
    folder = real_data / "pointcloud"
    if not (folder / WEIGHTS).is_file():
        pytest.skip(f"no {WEIGHTS} in {folder}")
    return folder


def test_pointmlp_in_float_scores_what_it_should(clouds: Path) -> None:
    adapter: Any = load_model(
        ModelRequest("points", "pointmlp_elite", clouds / "pointmlp_elite_modelnet40.safetensors")
    )
    assert len(adapter.loaded.classes) == 40
    source = adapter.open(clouds / "furniture_2048.npz", "evaluation")
    assert len(source) == 176
    records = []
    for index in range(0, 176, 4):
        with torch.no_grad():
            logits = adapter.loaded.graph(*map(torch.from_numpy, adapter.inputs(source.read(index))))[0]
        records.append(adapter.judge([logits.numpy()], None, source.items[index].label))
    assert adapter.metric.total(records) > 60  # 74.4 on all


def test_pointmlp_keeps_its_classes_in_8_bits(clouds: Path, tmp_path: Path) -> None:
    with np.load(clouds / "furniture_2048.npz") as stored:
        points, labels = stored["points"], stored["label"]
    for name, part in (("calib", slice(0, 160, 4)), ("data", slice(1, 176, 4))):
        np.savez(tmp_path / f"{name}.npz", points=points[part], label=labels[part])
    out = tmp_path / "bundle"
    done = edgeq(
        *("export", "points:pointmlp_elite", "--device", "rpi", "--scheme", "static", "--runs", "5"),
        *("--weights", str(clouds / WEIGHTS), "--max-drop", "7", "--out", str(out)),
        *("--calib", str(tmp_path / "calib.npz"), "--data", str(tmp_path / "data.npz"), "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["metric"]["name"] == "top1"
    assert summary["metric"]["n"] == 44
    assert summary["metric"]["agreement"] > 0.9
    assert summary["quantized_weights"] == 27  # of 32 layers; five read coordinates or feed differences of neighbours
    assert summary["integer_mac_share"] > 0.9
    assert summary["bytes"] < 0.5 * summary["float_bytes"]
    (candidate,) = json.loads((out / "evidence.json").read_text())["candidates"]
    assert not candidate["file"]["missing"]
    assert not candidate["file"]["extra"]
    layers = [row for row in candidate["layers"] if row["weight_bits"]]
    assert len(layers) > 20
    assert all(row["file_db"] > row["total_db"] - 3 for row in layers)
    np.savetxt(tmp_path / "cloud.xyz", points[1])
    command = [sys.executable, str(out / "run.py"), str(tmp_path / "cloud.xyz"), "--json"]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    adapter: Any = load_model(
        ModelRequest("points", "pointmlp_elite", clouds / "pointmlp_elite_modelnet40.safetensors")
    )
    with torch.no_grad():
        logits = adapter.loaded.graph(*map(torch.from_numpy, adapter.inputs(points[1].astype(np.float32))))[0]
    assert answer["results"][0]["top"][0]["index"] == int(logits.argmax())
    np.save(tmp_path / "few.npy", points[1, :100])
    refused = subprocess.run([*command[:2], str(tmp_path / "few.npy")], capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    assert "100 points" in refused.stderr
