from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeq.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout; anything else there is an error."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Done:
        capsys.readouterr()
        code = main(words)
        return Done(code, *capsys.readouterr())

    return call


# One thread: the gate on time holds whatever else runs on the machine.
FAST = ["--device", "rpi", "--scheme", "dynamic", "--runs", "300", "--threads", "1"]


def edgeq(*words: str | Path, cwd: Path, timeout: int = 800) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own."""
    command = [sys.executable, "-m", "edgeq", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


def stopped(*words: str, stage: str, number: signal.Signals, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line and send it a signal when its `stage` has ended, or, for "start", when its work begins."""
    command = [sys.executable, "-m", "edgeq", *words]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        if stage == "start":
            while not (cwd / "out").exists():
                assert process.poll() is None
        else:
            for line in process.stderr:  # a stage prints its line when it ends, so the next one is running
                if stage in line:
                    break
        process.send_signal(number)
        out, rest = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, out, rest)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the bundle of `vit_nano` for the Raspberry Pi below it, and the summary of its export."""
    cwd = tmp_path_factory.mktemp("export")
    done = edgeq("export", "vit_nano", *FAST, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, json.loads(done.stdout)
