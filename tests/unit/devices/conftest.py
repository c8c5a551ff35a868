"""A loopback sshd that stands in for a board, and bundles to send to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.artifact import Artifact, describe_files, write_golden, write_json
from edgeq.devices import open_model
from tests.unit.artifact.conftest import MANIFEST


def finish(folder: Path, model: str, inputs: list[Any], memory: dict[str, Any] | None, **changes: Any) -> Artifact:
    """The files that make a folder with a model a bundle."""
    runtime = open_model(folder / model)
    write_golden(folder, inputs, [runtime.run(*sample) for sample in inputs])
    write_json(folder / "evidence.json", {"candidates": [{"file": {"memory": memory}}]})
    manifest = replace(MANIFEST, files=tuple(describe_files(folder)), **changes)
    write_json(folder / "manifest.json", manifest.to_dict())
    return Artifact.open(folder)


def tiny_bundle(folder: Path, model: Path, name: str = "model.tflite", vectors: int = 4) -> Artifact:
    """A bundle around the tiny int8 model."""
    shutil.copyfile(model, folder / name)
    inputs = [(a,) for a in np.random.default_rng(0).normal(size=(vectors, 1, 3, 8, 8)).astype(np.float32)]
    return finish(folder, name, inputs, None)


@pytest.fixture
def tflite(tiny_int8: Path, tmp_path: Path) -> Artifact:
    (tmp_path / "bundle").mkdir()
    return tiny_bundle(tmp_path / "bundle", tiny_int8)


@dataclass
class Sshd:
    """A running sshd of our own.

    Args:
        folder: Its configuration, keys, and the home of what it stores.
        port: On the loopback.
        process: The server.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    scripts: int = field(default=0)

    address = "ssh://board"

    @property
    def cache(self) -> Path:
        """Where artifacts are kept."""
        return self.folder / "cache" / "edgeq" / "artifacts"

    def config(self, **changes: str) -> Path:
        """A configuration for `ssh` that knows this server."""
        known, key = self.folder / "known", self.folder / "user"
        settings = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "IdentityFile": str(key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(known),
            "GlobalKnownHostsFile": "/dev/null",
            **changes,
        }
        path = self.folder / f"config-{self.scripts}"
        self.scripts += 1
        path.write_text("Host board\n" + "".join(f"  {key} {value}\n" for key, value in settings.items()))
        return path

    def python(self, body: str) -> str:
        """A program to call instead of Python: a shell script, in which `$PYTHON` is the real one."""
        path = self.folder / f"python-{self.scripts}"
        self.scripts += 1
        path.write_text(f"#!/bin/sh\nPYTHON={sys.executable}\n{body}\n")
        path.chmod(0o755)
        return str(path)

    def cut(self) -> None:
        """End every connection at once, as pulling the plug would."""
        for pid in _sessions(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _sessions(server: int) -> list[int]:
    """Processes named sshd below the server."""
    parents: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            parents[int(stat.parent.name)] = int(rest.split()[1]), name
    found, level = [], [server]
    while level:
        level = [pid for pid, (parent, name) in parents.items() if parent in level and name.startswith("sshd")]
        found += level
    return found


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd, ssh and ssh-keygen: apt-get install openssh-server")
    if os.geteuid() == 0:  # the server of root insists on this folder
        Path("/run/sshd").mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "yes",
        "SetEnv": f"XDG_CACHE_HOME={folder / 'cache'}",
        "MaxStartups": 100,
    }
    (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join((folder / 'host.pub').read_text().split()[:2])}\n")
    log = (folder / "log").open("wb")
    process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    while process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            break
        time.sleep(0.05)
    if process.poll() is not None:
        pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-200:]}")
    yield Sshd(folder, port, process)
    process.kill()
    process.wait()


@pytest.fixture
def board(_server: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """The server, known to `ssh` as `board`, with nothing stored."""
    monkeypatch.setenv("EDGEQ_SSH_CONFIG", str(_server.config()))
    shutil.rmtree(_server.cache, ignore_errors=True)
    yield _server
