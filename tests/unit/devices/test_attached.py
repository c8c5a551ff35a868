"""Devices that run artifacts: this machine, emulated boards, and what they refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import openvino
import pytest

from edgeq import firmware
from edgeq.artifact import Artifact
from edgeq.devices.attached import EmulatedDevice, open_device
from edgeq.devices.cortex_m import missing_tools
from edgeq.devices.host import missing_compiler
from edgeq.errors import MissingError, UsageError
from edgeq.exporters.c.memory import memory_of
from edgeq.graph.intgraph.file import save
from tests.unit.devices.conftest import finish
from tests.unit.graph.intgraphs import SmallAttention, lowered, noise

PROFILE = {"schema", "ok", "device", "unit", "p50", "p90", "p99", "runs", "layers", "memory", "environment", "notes"}
VERIFY = {"schema", "ok", "device", "vectors", "exact", "max_lsb", "layers", "passed"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder, samples = tmp_path_factory.mktemp("program"), noise(1, 7, 12)
    graph = lowered(SmallAttention().eval(), samples)
    save(graph, folder / "model.intgraph")
    inputs = [tuple(x.numpy() for x in sample) for sample in samples]
    firmware.write_firmware(folder, "small", folder / "model.intgraph", inputs)
    return finish(folder, "model.intgraph", inputs, asdict(memory_of(graph)), target="cortex-m4")


@pytest.fixture
def vino(tmp_path: Path) -> Artifact:
    x = openvino.opset13.parameter([1, 6], np.float32)
    weight = openvino.opset13.constant(np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32))
    product = openvino.opset13.matmul(x, weight, False, False)
    model = openvino.Model([openvino.opset13.relu(product)], [x])
    openvino.save_model(model, str(tmp_path / "model.xml"), compress_to_fp16=False)
    inputs = [(a,) for a in np.random.default_rng(0).normal(size=(4, 1, 6)).astype(np.float32)]
    return finish(tmp_path, "model.xml", inputs, None, target="x86")


@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
def test_c_on_this_machine(program: Artifact) -> None:
    device = open_device("local")
    found = device.verify(program).to_dict()
    assert set(found) >= VERIFY and found["schema"] == "edgeq.verify/1"
    assert (found["exact"], found["max_lsb"], found["vectors"], found["passed"]) == (True, 0, 4, True)
    profile = device.profile(program, 20).to_dict()
    assert set(profile) >= PROFILE and profile["unit"] == "ms" and profile["runs"] == 20
    assert profile["p50"] <= profile["p90"] <= profile["p99"]
    assert sum(layer["share"] for layer in profile["layers"]) == pytest.approx(1, abs=0.02)
    assert json.loads(json.dumps(profile)) == profile


@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_c_on_an_emulated_board(program: Artifact) -> None:
    device = open_device("qemu://mps2-an386")
    assert device.verify(program).passed
    first, second = (device.profile(program, "auto").to_dict() for _ in range(2))
    assert first == second and first["unit"] == "instructions" and first["runs"] == 1
    assert first["p50"] == first["p99"] >= sum(layer["value"] for layer in first["layers"])
    assert {"flash", "ram", "arena", "code", "stack"} == set(first["memory"])
    assert 0 < first["memory"]["stack"] < 4096 and "not cycles" in first["notes"][0]


@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
def test_c_that_differs_fails_by_so_many_steps(program: Artifact, tmp_path: Path) -> None:
    shutil.copytree(program.folder, tmp_path / "b")
    vectors = tmp_path / "b" / "c" / "small_vectors.c"
    head, tail = vectors.read_text().split("expected0", 1)
    start = tail.index("{", tail.index("{") + 1) + 1
    end = tail.index(",", start)
    vectors.write_text(head + "expected0" + tail[:start] + str(int(tail[start:end]) + 3) + tail[end:])
    found = open_device("local").verify(Artifact.open(tmp_path / "b"))
    assert (found.exact, found.max_lsb, found.passed, found.details["different"]) == (False, 3, False, 1)


def test_model_files_on_this_machine(tflite: Artifact) -> None:
    found = open_device("local").verify(tflite).to_dict()
    assert set(found) >= VERIFY and found["exact"] and found["passed"] and found["max_lsb"] is None
    assert found["agreement"] == 1
    profile = open_device("local", threads=1).profile(tflite, 5).to_dict()
    assert set(profile) >= PROFILE and profile["runs"] == 5 and profile["layers"] == []
    assert any("not timed" in note for note in profile["notes"])


def test_model_files_may_differ_within_the_limits(tflite: Artifact) -> None:
    path = tflite.folder / "golden" / "expected.npz"
    kept = dict(np.load(path))
    np.savez(path, output_0=kept["output_0"] + np.random.default_rng(0).normal(size=kept["output_0"].shape) * 1e-3)
    found = open_device("local").verify(tflite)
    assert not found.exact and found.passed and 20 < found.details["sqnr_db"]["median"] < 100
    np.savez(path, output_0=kept["output_0"][::-1])
    assert not open_device("local").verify(tflite).passed


def test_openvino_tells_the_time_of_its_layers(vino: Artifact) -> None:
    profile = open_device("local").profile(vino, 5).to_dict()
    assert profile["layers"] and all(layer["value"] >= 0 for layer in profile["layers"])


def test_addresses_and_artifacts_must_fit(tflite: Artifact) -> None:
    for address, code in (("ssh://-x", "EQ-U870"), ("qemu://", "EQ-U602"), ("", "EQ-U602"), ("qemu://x", "EQ-U601")):
        with pytest.raises(UsageError) as refused:
            open_device(address)
        assert refused.value.code == code
    with pytest.raises(UsageError) as refused:
        open_device("qemu://mps2-an386").verify(tflite)
    assert refused.value.code == "EQ-U603"


def test_missing_tools_are_named(program: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for address, code in (("local", "EQ-P600"), ("qemu://mps2-an386", "EQ-P500")):
        with pytest.raises(MissingError) as lacking:
            open_device(address).profile(program, "auto")
        assert lacking.value.code == code and "apt-get install" in str(lacking.value.hint)
    assert EmulatedDevice("cortex-m4").name == "qemu://mps2-an386"
