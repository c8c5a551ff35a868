"""The shipped ViT on what stands in for boards: a loopback sshd, and Arm in an emulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgeq.devices.arm64 import missing_board
from tests.cli.test_export import edgeq
from tests.unit.devices.conftest import Sshd, _server, board

__all__ = ["_server", "board"]


@pytest.mark.device
@pytest.mark.parametrize("device", ["rpi4", "x86"])
def test_an_export_gives_the_same_classes_on_devices(board: Sshd, device: str, tmp_path: Path) -> None:
    done = edgeq(
        "export",
        "vit_nano",
        "--device",
        device,
        "--scheme",
        "dynamic",
        "--runs",
        "5",
        "--force",
        "--out",
        "b",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    done = edgeq("verify", "b", "--on", board.address, "--python", sys.executable, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exact"]
    if lacking := missing_board("rpi4"):
        pytest.skip(lacking)
    done = edgeq("verify", "b", "--on", "qemu://rpi4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["agreement"] == 1 and found["sqnr_db"]["worst"] > 30
