"""`edgeq export --device x86` on the shipped `vit_nano`: OpenVINO's files, with its real weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeq.artifact import Artifact
from tests.cli.test_export import edgeq


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    cwd = tmp_path_factory.mktemp("export")
    words = ["--device", "x86", "--scheme", "integer", "--rounding", "nearest", "--runs", "100", "--force"]
    done = edgeq("export", "vit_nano", *words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, json.loads(done.stdout)


def test_every_product_runs_in_integers(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    assert summary["integer_mac_share"] == 1
    assert summary["quantized_weights"] == 24
    assert summary["fidelity"]["sqnr_db"]["median"] > 30
    assert summary["bytes"] < 0.4 * summary["float_bytes"]
    evidence = json.loads((cwd / summary["artifact"] / "evidence.json").read_text())
    (candidate,) = evidence["candidates"]
    assert not [r for r in candidate["rejected"] if "integers" in r]
    kernels = [(*name.split(), count) for name, count in candidate["execution"]["kernels"].items()]
    products = [k for k in kernels if k[0] in ("Convolution", "FullyConnected", "MatMul")]
    assert all(kernel.lower().endswith("_i8") for _, kernel, _ in products), products
    assert (
        sum(count for *_, count in products) == 24 + 15
    )  # the layers; queries by keys, small and large probabilities by values in 5 blocks
    assert candidate["execution"]["settings"]["INFERENCE_PRECISION_HINT"] == "f32"


def test_bundle_runs_alone_with_the_options_it_was_measured_with(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    artifact = Artifact.open(cwd / summary["artifact"])
    artifact.verify_files()
    assert artifact.manifest.entry == "model.xml"
    assert {"model.xml", "model.bin"} <= {f["path"] for f in artifact.manifest.files}
    assert artifact.manifest.runtime == {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    done = subprocess.run([sys.executable, "run.py"], cwd=artifact.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exact" in done.stdout


def test_reproduce_gives_the_same_bytes(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    done = edgeq("reproduce", summary["artifact"], "--json", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


def test_weights_scheme_is_openvinos_alone(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, _ = exported
    words = ["--device", "x86", "--format", "tflite", "--scheme", "weights", "--out", "other", "--json"]
    done = edgeq("export", "vit_nano", *words, cwd=cwd)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (2, "EQ-U011")
