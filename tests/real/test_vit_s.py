"""The real ViT-S through the real converter and runtime: what the README promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_export import edgeq


@pytest.mark.real
@pytest.mark.timeout(1200)
def test_vit_s_dynamic_keeps_the_map(vit_s_focus: Path, real_data: Path, tmp_path: Path) -> None:
    photos = real_data / "yolo" / "images"
    words = [vit_s_focus, "--family", "vit", "--device", "rpi", "--calib", photos, "--scheme", "dynamic"]
    done = edgeq("export", *words, "--runs", "20", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["fidelity"]["samples"] == 32
    assert summary["fidelity"]["sqnr_db"]["median"] >= 34
    assert summary["bytes"] <= 27e6
    assert summary["integer_mac_share"] > 0.9
    assert summary["quantized_weights"] == 77  # patch embedding, 72 linear layers, 3 sub-pixel and 1 final convolution
    evidence = json.loads((tmp_path / summary["artifact"] / "evidence.json").read_text())
    assert evidence["import_max_rel_error"] <= 1e-3


@pytest.mark.real
def test_vit_nano_top1_is_within_half_a_point(real_data: Path, tmp_path: Path) -> None:
    data = real_data / "cifar10" / "test.npz"
    done = edgeq("export", "vit_nano", "--device", "rpi", "--data", data, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    metric = json.loads(done.stdout)["metric"]
    assert metric["n"] == 1000
    assert metric["float"] >= 80
    assert metric["float"] - metric["quantized"] <= 0.5
