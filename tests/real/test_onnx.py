"""Real weights through the ONNX exporter and onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_export import edgeq


@pytest.mark.real
@pytest.mark.timeout(900)
def test_vit_nano_runs_every_layer_as_integers(real_data: Path, tmp_path: Path) -> None:
    words = ["vit_nano", "--device", "x86", "--format", "onnx", "--scheme", "static", "--rounding", "nearest"]
    data = real_data / "cifar10" / "test.npz"
    # Timed little and not judged by it: this is about kernels and accuracy.
    done = edgeq("export", *words, "--data", data, "--limit", "300", "--runs", "5", "--force", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["fidelity"]["sqnr_db"]["median"] >= 30
    assert summary["metric"]["float"] - summary["metric"]["quantized"] <= 1
    evidence = json.loads((tmp_path / summary["artifact"] / "evidence.json").read_text())
    (candidate,) = evidence["candidates"]
    kernels = candidate["execution"]["kernels"]
    assert (kernels["QGemm CPU"], kernels["QLinearConv CPU"]) == (21, 3)
    assert candidate["file"]["weights_equal_plan"] == 24
    layers = [row for row in candidate["layers"] if row["weight_bits"]]
    assert len(layers) == 24
    assert all(row["file_db"] > row["total_db"] - 3 for row in layers)
    assert not candidate["file"]["missing"] + candidate["file"]["extra"]
    assert not any("ran in float kernels" in reason for reason in candidate["rejected"])
    bundle = tmp_path / summary["artifact"]
    compared = edgeq("compare", bundle, bundle / "model.onnx", "--runs", "3", "--json", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout)["rows"][1]["sqnr_db"]["median"] is None  # the same file: equal
