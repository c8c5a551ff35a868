"""Arm boards in an emulator: how they are built, and the runtimes' own wheels for Arm on them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.artifact import Artifact
from edgeq.devices import arm64_setup, get_target
from edgeq.devices.arm64 import BOARDS, arm64_transport, missing_board, python_of
from edgeq.devices.attached import open_device
from edgeq.devices.environment import cpu_info
from edgeq.errors import DeviceError, MissingError
from tests.unit.devices.conftest import finish

emulated = pytest.mark.parametrize(
    "board",
    [pytest.param(b, marks=pytest.mark.skipif(bool(missing_board(b)), reason=missing_board(b))) for b in BOARDS],
)


@pytest.mark.parametrize("board", BOARDS)
def test_the_cpu_is_described_as_the_target_says(board: str, tmp_path: Path) -> None:
    core, target = BOARDS[board], get_target(board)
    (tmp_path / "cpuinfo").write_text(core.cpuinfo)
    found = cpu_info(tmp_path / "cpuinfo")
    assert found.model in target.cpu and set(found.isa) == set(target.isa)
    assert core.cpu == found.model.lower() and "max" not in core.cpu
    midr = int(core.midr, 16)
    assert (midr >> 24, midr >> 4 & 0xFFF) == (0x41, core.part)


class Commands:
    """Stands for apt, dpkg and pip."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.broken = ""

    def __call__(self, words: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        line = " ".join(words)
        self.said.append(line)
        if self.broken and self.broken in line:
            return subprocess.CompletedProcess(words, 100, b"", b"W: slow\nE: no network\n")
        if "--download-only" in words:
            cache = next(Path(w.partition("=")[2]) for w in words if w.startswith("Dir::Cache="))
            (cache / "archives" / "python.deb").touch()
        if words[0] == "dpkg-deb":
            python = Path(words[3]) / "usr/bin/python3.11"
            python.parent.mkdir(parents=True)
            python.touch()
            (Path(words[3]) / "lib").symlink_to("/usr/lib")
        return subprocess.CompletedProcess(words, 0, b"", b"")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    fake = Commands()
    monkeypatch.setenv("EDGEQ_ARM64_DIR", str(tmp_path / "arm64"))
    monkeypatch.setattr(arm64_setup.subprocess, "run", fake)
    monkeypatch.setattr(arm64_setup.shutil, "which", lambda name: f"/bin/{name}")
    return fake


def test_a_board_is_built_once_and_goes_on_where_it_was(commands: Commands, tmp_path: Path) -> None:
    commands.broken = "pip"
    with pytest.raises(DeviceError) as failed:
        arm64_setup.set_up("rpi4", lambda text: None)
    assert failed.value.code == "EQ-X880" and "no network" in failed.value.message
    assert not (tmp_path / "arm64" / "site").exists() and missing_board("rpi4")
    commands.broken, commands.said = "", []
    root = arm64_setup.set_up("rpi4", lambda text: None)
    assert not any("apt-get" in line for line in commands.said)  # what was there was kept
    (pip,) = commands.said
    assert "--python-version 311" in pip and "numpy==" in pip and "manylinux_2_28_aarch64" in pip
    commands.said = []
    arm64_setup.set_up("rpi5", lambda text: None)
    assert commands.said == []  # boards share everything but their CPU
    assert python_of(root) is not None and not missing_board("rpi4") and not missing_board("rpi5")
    assert os.readlink(tmp_path / "arm64/base/lib") == "usr/lib"  # noqa: PTH115
    assert "0xd08" in (root / "proc/cpuinfo").read_text()
    assert (root / "sys/devices/system/cpu/cpu1/regs/identification/midr_el1").is_file()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, commands: Commands) -> None:
    with pytest.raises(MissingError) as absent:
        arm64_transport("rpi4")
    assert absent.value.code == "EQ-P873" and "--setup qemu://rpi4" in str(absent.value.hint)
    monkeypatch.setattr(arm64_setup.shutil, "which", lambda name: None)
    for do in (lambda: arm64_transport("rpi4"), lambda: arm64_setup.set_up("rpi4", print)):
        with pytest.raises(MissingError) as absent:
            do()
        assert "qemu-user" in str(absent.value.hint)


@pytest.mark.device
@emulated
def test_tflite_on_arm(board: str, tflite: Artifact) -> None:
    found = open_device(f"qemu://{board}").verify(tflite)
    assert found.passed and found.details["sqnr_db"]["worst"] > 20 and found.details["agreement"] == 1
    profile = open_device(f"qemu://{board}").profile(tflite, "auto").to_dict()
    assert profile["environment"]["machine"] == "aarch64" and "emulated" in profile["board"]
    assert profile["environment"]["cpu"]["model"] in BOARDS[board].cpu.title() + get_target(board).cpu
    assert profile["p50"] is None and profile["runs"] == 0 and "no milliseconds" in profile["notes"][0]
    assert profile["census"]["DELEGATE"] >= 1  # XNNPACK found the CPU described and took the layers


@pytest.mark.device
@emulated
def test_openvino_on_arm(board: str, tiny_openvino: Path, tmp_path: Path) -> None:
    for suffix in (".xml", ".bin"):
        (tmp_path / f"model{suffix}").write_bytes(tiny_openvino.with_suffix(suffix).read_bytes())
    inputs = [(a,) for a in np.random.default_rng(0).normal(size=(2, 1, 8)).astype(np.float32)]
    bundle = finish(tmp_path, "model.xml", inputs, None, target="x86", runtime={"INFERENCE_PRECISION_HINT": "f32"})
    found = open_device(f"qemu://{board}").verify(bundle)
    assert found.passed and found.details["sqnr_db"]["worst"] > 40
