"""`edgeq profile`, `verify`, `devices` and `doctor` on attached devices, through a loopback sshd."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeq.artifact import Artifact
from edgeq.cli.main import main
from edgeq.devices.link import Link
from tests.unit.devices.conftest import Sshd, tiny_bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(w) for w in words])
        return (code, *capsys.readouterr())

    return call


QUICK = ("--python", sys.executable, "--seconds", "0.3")


def test_verify_and_profile_over_ssh(board: Sshd, tflite: Artifact, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("verify", tflite.folder, "--on", board.address, "--python", sys.executable)
    assert code == 0 and out.splitlines()[-1] == "passed" and "every value equal" in out
    code, out, _ = run("profile", tflite.folder, "--on", board.address, "--on", "local", *QUICK, "--json")
    both = json.loads(out)
    assert code == 0 and both["schema"] == "edgeq.profiles/1" and both["ok"]
    assert [p["device"] for p in both["profiles"]] == ["ssh://board", "local"]
    (tmp_path / "base.json").write_text(out)
    words = ("profile", tflite.folder, "--on", board.address, *QUICK, "--history", "--per-op")
    code, out, _ = run(*words, "--against", tmp_path / "base.json", "--max-slowdown", "100000")
    assert code == 0 and "measured apart" in out and "ms median" in out and "operations:" in out
    assert "the first profile" in out
    code, out, _ = run(*words, "--against", tmp_path / "base.json", "--max-slowdown", "-99.99", "--json")
    slow = json.loads(out)
    assert code == 1 and not slow["ok"] and not slow["gate"]["passed"] and slow["complete"]
    assert len(slow["history"]["earlier"]) == 1


def test_two_artifacts_in_alternation(board: Sshd, tflite: Artifact, tiny_int8: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tiny_bundle(tmp_path / "other", tiny_int8, "other.tflite")
    words = ("profile", tflite.folder, "--on", board.address, *QUICK, "--runs", "30")
    code, out, _ = run(*words, "--against", other.folder, "--json")
    found = json.loads(out)
    assert code == 0 and found["gate"]["paired"] and found["gate"]["interval"][0] <= found["gate"]["slowdown"]
    assert found["against"]["runs"] == 30 and len(list(board.cache.iterdir())) == 2


def test_one_device_that_fails_does_not_lose_the_others(board: Sshd, tflite: Artifact, run: Run) -> None:
    code, out, err = run("profile", tflite.folder, "--on", board.address, "--on", "ssh://no-such.invalid", *QUICK)
    assert code == 5 and "EQ-X870" in err and "ssh://board" in out and "ms median" in out
    code, out, _ = run("profile", tflite.folder, "--on", "local", "--on", "ssh://no-such.invalid", *QUICK, "--json")
    assert code == 5 and [p["ok"] for p in json.loads(out)["profiles"]] == [True, False]


def test_a_cut_profile_is_shown_as_incomplete(
    board: Sshd, tflite: Artifact, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ask = Link._event, Link.ask

    def asking(self: Link, do: str, seen: Any = None, **values: Any) -> Any:
        return ask(self, do, seen, **{**values, **({"runs": 10**7} if do == "profile" else {})})  # the model is tiny

    def cutting(self: Link, deadline: float) -> dict[str, Any]:
        event = real(self, deadline)
        if event["event"] == "times":
            board.cut()
        return event

    monkeypatch.setattr(Link, "_event", cutting)
    monkeypatch.setattr(Link, "ask", asking)
    words = ("profile", tflite.folder, "--on", board.address, "--python", sys.executable)
    code, out, err = run(*words, "--seconds", "60", "--history")
    assert code == 5 and "INCOMPLETE" in out and "EQ-X873" in out and "history" not in out, err


def test_doctor_and_clean(board: Sshd, tflite: Artifact, run: Run) -> None:
    assert run("verify", tflite.folder, "--on", board.address, "--python", sys.executable)[0] == 0
    code, out, _ = run("doctor", "--device", board.address, "--python", sys.executable)
    assert code == 0 and "ready" in out and "governor" in out and "ai-edge-litert" in out
    code, out, _ = run(
        "doctor", "--device", board.address, "--python", board.python('exec "$PYTHON" -S "$@"'), "--json"
    )
    assert code == 4 and not json.loads(out)["ok"]
    code, out, _ = run("devices", "--clean", board.address, "--python", sys.executable, "--json")
    assert code == 0 and json.loads(out)["artifacts"] == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("devices", "--clean", "local"), "EQ-U873"),
        (("devices", "--clean", "qemu://mps2-an386"), "EQ-U873"),
        (("devices", "--setup", "ssh://pi"), "EQ-U873"),
        (("devices", "--setup", "qemu://mps2-an386"), "EQ-U873"),
        (("devices", "rpi4", "--scan"), "EQ-U001"),
        (("doctor", "--device", "ssh://-x"), "EQ-U870"),
        (("doctor", "--device", "qemu://mps2-an386"), "EQ-U873"),
        (("profile", "x", "--max-slowdown", "5"), "EQ-U872"),
        (("profile", "x", "--on", "ssh://a b"), "EQ-U870"),
    ],
)
def test_wrong_uses(words: tuple[str, ...], code: str, run: Run) -> None:
    exit_code, out, _ = run(*words, "--json")
    assert exit_code == 2 and json.loads(out)["code"] == code


def test_scan_lists_without_connecting(board: Sshd, run: Run) -> None:
    code, out, _ = run("devices", "--scan", "--json")
    assert code == 0 and "ssh://board" in [f["address"] for f in json.loads(out)["found"]]
    assert "ssh://board" in run("devices", "--scan")[1]
