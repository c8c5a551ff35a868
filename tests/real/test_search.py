"""Searches with real weights: on an emulated microcontroller, killed in between, and on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgeq.artifact import Artifact
from edgeq.cli.main import main
from edgeq.devices.cortex_m import missing_tools

pytestmark = [pytest.mark.real, pytest.mark.slow]

M4 = ("search", "cifar_cnn", "--device", "cortex-m4", "--on", "qemu://mps2-an386", "--samples", "16", "--json")


def found(capsys: pytest.CaptureFixture[str], words: list[str], code: int = 0) -> dict[str, Any]:
    assert main(words) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_a_killed_search_goes_on_and_its_bundle_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    out = tmp_path / "out"
    words = [*M4, "--budget-kb", "64", "--budget-ratio", "1.3", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.Popen([sys.executable, "-m", "edgeq", *words], env=environment, stdout=subprocess.DEVNULL)
    journals = tmp_path / "state" / "edgeq" / "search"
    deadline = time.monotonic() + 240
    while not any(path.read_bytes().count(b"\n") > 1 for path in journals.glob("*.jsonl")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (journal,) = journals.glob("*.jsonl")
    before = journal.read_bytes()
    before = before[: before.rfind(b"\n") + 1]

    result = found(capsys, words)
    assert journal.read_bytes().startswith(before)
    winner, (wide, narrow) = result["winner"], result["uniform"]
    assert winner["kept"] and winner["bytes"] <= 64_000 and winner["ratio"] <= 1.3
    assert winner["cost"]["predicted"] == pytest.approx(winner["cost"]["measured"], rel=1e-3)
    assert set(winner["bits"]) == {"4", "8"} and not wide["kept"]
    decibels = [t["fidelity"]["sqnr_db"]["median"] for t in (winner, narrow)]
    assert decibels[0] > decibels[1]
    bundle = Artifact.open(out / "best")
    bundle.verify_files()
    chosen = {layer["name"] for layer in result["layers"] if layer["bits"] == 4}
    assert set(bundle.manifest.config["narrow"].split(",")) == chosen
    assert {t.bits for t in bundle.plan().weights()} == {4, 8}
    assert main(["reproduce", str(out / "best"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert "<svg" in (out / "search.html").read_text() and not (out / ".files").exists()

    lines = journal.read_bytes().count(b"\n")
    assert found(capsys, words, 2)["code"] == "EQ-U884"
    again = found(capsys, [*words, "--resume"])
    assert journal.read_bytes().count(b"\n") == lines and again["winner"]["bits"] == winner["bits"]
    tight = [*M4, "--budget-kb", "20", "--out", str(tmp_path / "tight")]
    refused = found(capsys, tight, 1)
    assert refused["code"] == "EQ-G880" and refused["hint"].startswith("--budget-kb ")


def test_a_search_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    words = [
        "search",
        "cifar_cnn",
        "--device",
        "x86",
        "--format",
        "openvino",
        "--samples",
        "16",
        "--json",
        "--builds",
        "1",
    ]
    words += ["--budget-kb", "200", "--out", str(tmp_path / "out")]
    result = found(capsys, words)
    assert result["winner"]["bytes"] <= 200_000 and result["unit"] == "ms"
    (mixed,) = result["mixed"]
    assert mixed["bytes"] <= 200_000 and set(mixed["bits"]) <= {"4", "8", "32"}
    assert result["winner"]["fidelity"]["sqnr_db"]["median"] >= max(
        t["fidelity"]["sqnr_db"]["median"] for t in result["uniform"] if t["kept"] and not t["missed"]
    )
    Artifact.open(tmp_path / "out" / "best").verify_files()
