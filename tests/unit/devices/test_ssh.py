"""Devices over ssh, against a loopback sshd: what works, and everything that can go wrong on the way."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.artifact import Artifact
from edgeq.devices import link as links
from edgeq.devices import ssh
from edgeq.devices.attached import open_device
from edgeq.devices.computer import Computer
from edgeq.devices.link import Limits, Link
from edgeq.devices.ssh import Address, SshTransport
from edgeq.errors import DeviceError, EdgeqError, MissingError, UsageError
from tests.unit.devices.conftest import Sshd, tiny_bundle


def computer(board: Sshd, python: str = sys.executable, seconds: float = 0.5, **limits: float) -> Computer:
    transport = SshTransport(Address.parse(board.address), python, Limits(**limits))
    return Computer(transport, seconds=seconds)


def refused(code: str, do: Callable[[], object], kind: type[EdgeqError] = DeviceError) -> EdgeqError:
    with pytest.raises(kind) as caught:
        do()
    assert caught.value.code == code, caught.value.message
    assert caught.value.place and caught.value.hint
    return caught.value


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of a connection stays in the folder for sockets; it is a short one, as their names must be."""
    folder = tempfile.mkdtemp(prefix="t", dir="/tmp")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield
    Path(folder).rmdir()


def test_a_board_runs_what_it_is_sent_and_keeps_it(board: Sshd, tflite: Artifact, no_rest: None) -> None:
    device = open_device(board.address, python=sys.executable, seconds=0.5)
    assert device.name == "ssh://board"
    found = device.verify(tflite).to_dict()
    assert found["exact"] and found["passed"] and found["vectors"] == 4 and found["device"] == "ssh://board"
    (stored,) = board.cache.iterdir()
    assert sorted(p.name for p in stored.rglob("*") if p.is_file()) == sorted(
        ["manifest.json", "model.tflite", "inputs.npz", "expected.npz"]
    )
    marked = stored.stat().st_ino
    profile = device.profile(tflite, 30).to_dict()
    assert profile["runs"] == 30 and profile["complete"] and profile["output"]["exact"]
    assert profile["min"] <= profile["p50"] <= profile["p90"] <= profile["p99"]
    assert profile["interval"]["low"] <= profile["p50"] <= profile["interval"]["high"]
    assert profile["memory"]["peak_rss"] > profile["memory"]["before_load"] > 1e6
    assert profile["census"] and profile["load_ms"] > 0 and profile["threads"] == 1
    assert profile["environment"]["machine"] == os.uname().machine
    assert set(profile["state"]) == {"before", "after"}
    assert stored.stat().st_ino == marked  # the folder was not written again


def test_the_second_call_sends_nothing(board: Sshd, tflite: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    assert computer(board).verify(tflite).passed

    def never(*_: object) -> None:
        raise AssertionError("sent again")

    monkeypatch.setattr(Link, "_store", never)
    assert computer(board).verify(tflite).passed


def test_names_that_a_shell_would_run_are_only_names(board: Sshd, tiny_int8: Path, tmp_path: Path) -> None:
    name = "a b'$(touch pwned)`touch pwned`;\"&|> \\n-rf*.tflite".replace("\\", "")
    (tmp_path / "x $(touch pwned)").mkdir()
    bundle = tiny_bundle(tmp_path / "x $(touch pwned)", tiny_int8, name)
    assert computer(board).verify(bundle).passed
    (stored,) = board.cache.iterdir()
    assert (stored / name).is_file()
    assert (
        not list(tmp_path.rglob("pwned")) and not Path("pwned").exists() and not Path("~/pwned").expanduser().exists()
    )


def test_a_python_with_a_hostile_path_is_only_a_path(board: Sshd, tflite: Artifact) -> None:
    odd = board.folder / "it's a; $(touch pwned) python"
    shutil.copy(board.python('exec "$PYTHON" "$@"'), odd)
    assert computer(board, str(odd)).verify(tflite).passed
    for bad in ("", "a\nb", "a\0b"):
        refused("EQ-U870", lambda bad=bad: SshTransport(Address("h"), bad), UsageError)  # type: ignore[misc]


@given(st.text(max_size=40))
def test_no_text_becomes_an_option_of_ssh(text: str) -> None:
    try:
        address = Address.parse(f"ssh://{text}")
    except UsageError as error:
        assert error.code == "EQ-U870"
        return
    *options, mark, host = address.words()
    assert mark == "--" and not host.startswith("-") and not address.user.startswith("-")
    assert host.isascii() and not set(host) & set(" '\"$`;&|<>\\\n*?()")
    assert options[::2] == [o for o in options if o in ("-p", "-l")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ssh://pi", ["--", "pi"]),
        ("ssh://pi@raspberrypi.local:2222", ["-p", "2222", "-l", "pi", "--", "raspberrypi.local"]),
        ("ssh://u@[fe80::1%eth0]:22", ["-p", "22", "-l", "u", "--", "fe80::1%eth0"]),
    ],
)
def test_addresses(text: str, words: list[str]) -> None:
    address = Address.parse(text)
    assert address.words() == words
    assert f"ssh://{address}" + (f":{address.port}" if address.port else "") == text


@pytest.mark.parametrize(
    "text",
    ["ssh://", "ssh://-oProxyCommand=x", "ssh://-l@h", "ssh://a b", "ssh://h:0", "ssh://h:70000", "ssh://h:x", "pi"],
)
def test_wrong_addresses_are_refused(text: str) -> None:
    refused("EQ-U870", lambda: Address.parse(text), UsageError)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"UserKnownHostsFile": "/dev/null"}, "EQ-X871"),
        ({"UserKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "no"}, "EQ-X871"),
        ({"UserKnownHostsFile": "{folder}/changed"}, "EQ-X871"),
        ({"IdentityFile": "{folder}/other"}, "EQ-X872"),
        ({"Port": "1"}, "EQ-X870"),
        ({"HostName": "nowhere.invalid"}, "EQ-X870"),
    ],
)
def test_connections_that_do_not_come_about(
    board: Sshd, changes: dict[str, str], code: str, monkeypatch: pytest.MonkeyPatch, no_rest: None
) -> None:
    other = " ".join((board.folder / "other.pub").read_text().split()[:2])
    (board.folder / "changed").write_text(f"[127.0.0.1]:{board.port} {other}\n")
    config = board.config(**{key: value.format(folder=board.folder) for key, value in changes.items()})
    monkeypatch.setenv(ssh.CONFIG, str(config))
    error = refused(code, computer(board).describe)
    assert "board" in str(error.place)


def test_a_server_that_says_nothing_is_given_up(board: Sshd, monkeypatch: pytest.MonkeyPatch, no_rest: None) -> None:
    monkeypatch.setenv(ssh.CONFIG, str(board.config(ProxyCommand="sleep 100")))
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 1)
    refused("EQ-X870", computer(board, hello=0.5).describe)


def test_no_ssh_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    error = refused_missing("EQ-P870", lambda: SshTransport(Address("h")))
    assert "openssh-client" in str(error.hint)


def refused_missing(code: str, do: Callable[[], object]) -> EdgeqError:
    with pytest.raises(MissingError) as caught:
        do()
    assert caught.value.code == code, caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ('exec "$PYTHON" -S "$@"', "EQ-P872", "pip install numpy ai-edge-litert"),
        (
            'exec "$PYTHON" -c "import sys; sys.version_info=(3, 6, 9, 0, 0); exec(sys.argv[1])" "$2"',
            "EQ-P871",
            "--python",
        ),
        ("exec /nowhere/python", "EQ-P871", "--python"),
    ],
)
def test_what_a_board_may_lack(board: Sshd, tflite: Artifact, body: str, code: str, said: str) -> None:
    error = refused_missing(code, lambda: computer(board, board.python(body)).verify(tflite))
    assert said in str(error.hint)
    assert not board.cache.exists()  # nothing was sent in vain


def test_a_missing_python_is_named(board: Sshd, tflite: Artifact) -> None:
    error = refused_missing("EQ-P871", lambda: computer(board, "/nowhere/python3").verify(tflite))
    assert "/nowhere/python3" in error.message


@pytest.mark.skipif(shutil.which("setarch") is None, reason="no setarch")
def test_a_cpu_without_a_runtime(board: Sshd, tflite: Artifact) -> None:
    python = board.python('exec setarch linux32 "$PYTHON" -S "$@"')
    error = refused("EQ-X879", lambda: computer(board, python).verify(tflite))
    assert "64-bit" in str(error.hint)


def test_a_runtime_that_does_not_load(board: Sshd, tflite: Artifact, tmp_path: Path) -> None:
    broken = tmp_path / "site" / "ai_edge_litert"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("")
    (broken / "interpreter.py").write_text('raise ImportError("wrong ELF class: ELFCLASS32")')
    python = board.python(f'PYTHONPATH={tmp_path / "site"} exec "$PYTHON" "$@"')
    error = refused_missing("EQ-P872", lambda: computer(board, python).verify(tflite))
    assert "wrong ELF class" in error.message and "--force-reinstall ai-edge-litert" in str(error.hint)


def test_a_full_disk(board: Sshd, tflite: Artifact) -> None:
    python = board.python('ulimit -f 1; exec "$PYTHON" "$@"')
    error = refused("EQ-X874", lambda: computer(board, python).verify(tflite))
    assert "--clean" in str(error.hint)
    assert list(board.cache.iterdir()) == []
    assert computer(board).verify(tflite).passed


def test_a_disk_that_is_too_small_is_not_begun_on(
    board: Sshd, tflite: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = links._needed
    monkeypatch.setattr(links, "_needed", lambda a: [{**f, "bytes": 1 << 60} for f in real(a)])
    assert "are free" in refused("EQ-X874", lambda: computer(board).verify(tflite)).message


def test_a_cut_transfer_leaves_nothing_that_is_used(
    board: Sshd, tflite: Artifact, monkeypatch: pytest.MonkeyPatch, no_rest: None
) -> None:
    real = links._blocks

    def half(path: Path) -> Iterator[bytes]:
        for block in real(path):
            yield block[: len(block) // 2]
            board.cut()
            time.sleep(0.3)
            yield block[len(block) // 2 :]

    monkeypatch.setattr(links, "_blocks", half)
    error = refused("EQ-X873", lambda: computer(board).verify(tflite))
    assert "lost" in error.message
    monkeypatch.undo()
    monkeypatch.setenv(ssh.CONFIG, str(board.config()))
    deadline = time.monotonic() + 60
    while list(board.cache.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(board.cache.glob("*")) == []
    (board.cache / ".partial-killed").mkdir()  # as a power cut would leave it
    assert computer(board).verify(tflite).passed
    assert len(list(board.cache.iterdir())) == 1


def test_wrong_bytes_are_never_stored(board: Sshd, tflite: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_blocks", lambda path: iter([bytes(path.stat().st_size)]))
    assert "not the one that was sent" in refused("EQ-X873", lambda: computer(board).verify(tflite)).message
    assert list(board.cache.iterdir()) == []


def test_a_copy_that_was_damaged_is_replaced(board: Sshd, tflite: Artifact) -> None:
    assert computer(board).verify(tflite).passed
    (stored,) = board.cache.iterdir()
    (stored / "model.tflite").write_bytes(b"x")
    assert "not the file" in refused("EQ-X878", lambda: computer(board).verify(tflite)).message
    assert computer(board).verify(tflite).passed


def test_a_connection_that_is_cut_while_measuring_keeps_the_runs(
    board: Sshd, tflite: Artifact, monkeypatch: pytest.MonkeyPatch, no_rest: None
) -> None:
    real = Link._event

    def cutting(self: Link, deadline: float) -> dict[str, Any]:
        event = real(self, deadline)
        if event["event"] == "times":
            board.cut()
        return event

    monkeypatch.setattr(Link, "_event", cutting)
    profile = computer(board, seconds=30).profile(tflite, 10**7).to_dict()
    assert not profile["ok"] and not profile["complete"] and profile["error"]["code"] == "EQ-X873"
    assert profile["runs"] > 0 and profile["p50"] > 0 and "incomplete" in profile["notes"][0]
    assert "it kept running" in profile["error"]["message"]
    monkeypatch.undo()
    monkeypatch.setenv(ssh.CONFIG, str(board.config()))
    transport = SshTransport(Address.parse(board.address), sys.executable)
    with Link(transport) as link:
        assert link.lock(5, print) is None  # what ran there has ended, and its lock with it
    transport.close()


@pytest.mark.parametrize(("after", "said"), [("two", "was restarted"), ("", "does not answer now")])
def test_a_board_that_restarts_while_measuring_is_found_out(
    board: Sshd, tflite: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: str, said: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "boot_id").write_text("one")
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import pathlib\nreal = pathlib.Path.open\n"
        f"other = {{'/proc/sys/kernel/random/boot_id': pathlib.Path({str(tmp_path / 'boot_id')!r})}}\n"
        "pathlib.Path.open = lambda self, *a, **k: real(other.get(str(self), self), *a, **k)\n"
    )
    real = Link._event

    def restarting(self: Link, deadline: float) -> dict[str, Any]:
        event = real(self, deadline)
        if event["event"] == "times":
            (tmp_path / "boot_id").write_text(after)
            board.cut()
            if not after:
                monkeypatch.setenv(ssh.CONFIG, str(board.config(Port="1")))
        return event

    monkeypatch.setattr(Link, "_event", restarting)
    python = board.python(f'PYTHONPATH={tmp_path / "site"} exec "$PYTHON" "$@"')
    found = computer(board, python, seconds=30).profile(tflite, 10**7)
    assert found.runs > 0 and found.error is not None and found.error.code == "EQ-X873"
    assert said in found.error.message


def test_a_program_that_dies_says_how(
    board: Sshd, tflite: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    number = tmp_path / "pid"
    python = board.python(f'echo $$ > {number}; exec "$PYTHON" "$@"')
    real = Link._event

    def killing(self: Link, deadline: float) -> dict[str, Any]:
        event = real(self, deadline)
        if number.exists():  # at its first answer: nothing has been timed yet
            os.kill(int(number.read_text()), signal.SIGKILL)
            number.unlink()
        return event

    monkeypatch.setattr(Link, "_event", killing)
    error = refused("EQ-X878", lambda: computer(board, python, seconds=30).profile(tflite, 10**7))
    assert "SIGKILL" in error.message and "memory" in error.message


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('echo hello; echo \'{"event": "hello"}\'', "EQ-X876"),
        ("exit 0", "EQ-X876"),
        ("yes", "EQ-X876"),
        ("cat /dev/zero", "EQ-X876"),
        ("cat /dev/urandom >&2 & sleep 2; kill $!", "EQ-X876"),
        ("sleep 100", "EQ-X877"),
        ("cat >/dev/null; sleep 100", "EQ-X877"),
    ],
)
def test_what_answers_is_not_python(board: Sshd, body: str, code: str, no_rest: None) -> None:
    limit = 1.0 if code == "EQ-X877" else 10
    refused(code, computer(board, board.python(body), hello=limit).describe)


def test_a_talkative_log_in_does_no_harm(board: Sshd, tflite: Artifact) -> None:
    python = board.python('echo "Welcome!"; printf "no newline"; exec "$PYTHON" "$@"')
    assert computer(board, python).verify(tflite).passed


def test_a_slow_link_is_given_up(board: Sshd, tflite: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(path: Path) -> Iterator[bytes]:
        for byte in path.read_bytes():
            time.sleep(0.05)
            yield bytes([byte])

    monkeypatch.setattr(links, "_blocks", trickle)
    error = refused("EQ-X877", lambda: computer(board, silence=1, bytes_per_second=1e6).verify(tflite))
    assert "too slow" in error.message


def test_there_is_one_profiler_at_a_time(board: Sshd, tflite: Artifact) -> None:
    transport = SshTransport(Address.parse(board.address), sys.executable)
    seen: list[str] = []
    with Link(transport) as first:
        assert first.lock(60, print) is None
        second = Computer(SshTransport(Address.parse(board.address), sys.executable), wait=0.3, waiting=seen.append)
        error = refused("EQ-X875", lambda: second.verify(tflite))
        assert "@" in error.message and "process" in error.message and seen
        threading.Timer(0.5, first.close).start()
        patient = Computer(SshTransport(Address.parse(board.address), sys.executable), wait=20)
        assert patient.verify(tflite).passed
    transport.close()


def test_a_killed_profiler_holds_nothing(board: Sshd, tflite: Artifact) -> None:
    transport = SshTransport(Address.parse(board.address), sys.executable)
    with Link(transport) as link:
        assert link.lock(60, print) is None
        holder = int(Path("/tmp/edgeq.lock").read_text().partition("process ")[2].split()[0])
        os.kill(holder, signal.SIGKILL)
        impatient = Computer(SshTransport(Address.parse(board.address), sys.executable), wait=2)
        assert impatient.verify(tflite).passed
    transport.close()


def test_a_clock_that_jumps_changes_nothing(board: Sshd, tflite: Artifact, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import itertools, time\nhours = itertools.cycle((0, 3600, -7200))\ntime.time = lambda: 1e9 + next(hours)\n"
    )
    python = board.python(f'PYTHONPATH={tmp_path / "site"} exec "$PYTHON" "$@"')
    profile = computer(board, python).profile(tflite, 20)
    assert profile.runs == 20 and 0 < profile.p50 < 1000 and 0 < profile.details["load_ms"] < 60_000  # type: ignore[operator]


def test_cleaning_removes_our_artifacts_and_nothing_else(board: Sshd, tflite: Artifact) -> None:
    device = computer(board)
    assert device.clean() == {"artifacts": 0, "bytes": 0}
    assert computer(board).verify(tflite).passed
    other = board.cache / "notes"
    other.mkdir()
    found = computer(board).clean()
    assert found["artifacts"] == 1 and found["bytes"] > 1000
    assert [p.name for p in board.cache.iterdir()] == ["notes"]


def test_a_board_describes_itself(board: Sshd) -> None:
    found = computer(board).describe()
    assert found["bits"] == 64 and found["disk_free"] > 0 and found["numpy"]
    assert found["environment"]["cores"] >= 1 and set(found["state"]) >= {"governor", "celsius", "absent"}
    assert ["tflite", "ai-edge-litert"] in found["runtimes"]
