"""Devices over adb, against a program called `adb` that is a local shell: no real device has been here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeq.artifact import Artifact
from edgeq.cli.main import main
from edgeq.devices.adb import INSTALL, Address
from edgeq.devices.attached import open_device
from edgeq.devices.link import Link
from edgeq.errors import DeviceError, EdgeqError, MissingError, UsageError

# As adb does: one list of devices, and `shell` with the words joined for the device's shell.
PROGRAM = """#!/bin/sh
case "$1" in
devices)
  echo "List of devices attached"
  cat "$FAKE_ADB/devices"
  exit 0 ;;
-s)
  grep -q "^$2[[:space:]]*device$" "$FAKE_ADB/devices" || { echo "error: device '$2' not found" >&2; exit 1; }
  [ "$3 $4" = "shell -T" ] || exit 2
  shift 4
  echo $$ > "$FAKE_ADB/pid"
  exec setsid env HOME=/ XDG_CACHE_HOME="$FAKE_ADB/cache" sh -c "$*" ;;
esac
exit 2
"""


@dataclass(frozen=True)
class Bridge:
    """The stand-in for adb."""

    folder: Path

    def attach(self, listing: str) -> None:
        """What `adb devices` shows."""
        (self.folder / "devices").write_text(listing)

    def unplug(self) -> None:
        """Take the device away while it is talked to."""
        self.attach("")
        os.killpg(int((self.folder / "pid").read_text()), 9)


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    folder = tmp_path / "adb"
    folder.mkdir()
    (folder / "adb").write_text(PROGRAM)
    (folder / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ADB", str(folder))
    found = Bridge(folder)
    found.attach("emulator-5554\tdevice\n")
    yield found


def refused(code: str, do: Callable[[], object], kind: type[EdgeqError]) -> EdgeqError:
    with pytest.raises(kind) as caught:
        do()
    assert caught.value.code == code, caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_device_verifies_and_profiles_and_says_that_it_is_untried(
    bridge: Bridge, tflite: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--on", "adb://", "--python", sys.executable)
    assert main(["verify", str(tflite.folder), *words]) == 0
    out = capsys.readouterr().out
    assert "every value equal" in out and "never a real device" in out
    (stored,) = (bridge.folder / "cache" / "edgeq" / "artifacts").iterdir()
    assert (stored / "model.tflite").is_file()
    assert main(["profile", str(tflite.folder), *words, "--seconds", "0.3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "adb://" and found["unit"] == "ms" and found["output"]["exact"]
    assert any("never a real device" in note for note in found["notes"])
    assert main(["doctor", "--device", "adb://emulator-5554", *words[2:]]) == 0
    assert main(["devices", "--clean", "adb://emulator-5554", *words[2:]]) == 0
    assert list((bridge.folder / "cache" / "edgeq" / "artifacts").iterdir()) == []


@pytest.mark.parametrize(
    ("address", "listing", "code", "kind"),
    [
        ("adb://", "", "EQ-X931", DeviceError),
        ("adb://x", "y\tdevice\n", "EQ-X931", DeviceError),
        ("adb://", "x\tunauthorized\n", "EQ-X932", DeviceError),
        ("adb://x", "y\tdevice\nx\toffline\n", "EQ-X933", DeviceError),
        ("adb://", "x\tno permissions (user in plugdev group; are your udev rules wrong?)\n", "EQ-X933", DeviceError),
        ("adb://", "x\tdevice\ny\tdevice\n", "EQ-U922", UsageError),
    ],
)
def test_devices_that_cannot_be_used(
    bridge: Bridge, tflite: Artifact, address: str, listing: str, code: str, kind: type[EdgeqError]
) -> None:
    bridge.attach(listing)
    error = refused(code, lambda: open_device(address).verify(tflite), kind)
    assert error.exit_code == (2 if kind is UsageError else 5)


def test_a_missing_adb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    error = refused("EQ-P921", lambda: open_device("adb://"), MissingError)
    assert error.exit_code == 4 and error.hint == INSTALL


def test_a_server_that_fails(bridge: Bridge, tflite: Artifact) -> None:
    (bridge.folder / "adb").write_text("#!/bin/sh\necho 'cannot bind' >&2\nexit 1\n")
    assert "cannot bind" in refused("EQ-X933", lambda: open_device("adb://").verify(tflite), DeviceError).message


def test_a_device_without_python(bridge: Bridge, tflite: Artifact) -> None:
    refused("EQ-P871", lambda: open_device("adb://", python="/no/python").verify(tflite), MissingError)


def test_a_device_that_is_unplugged_keeps_its_runs(
    bridge: Bridge, tflite: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Link._event

    def pulling(self: Link, deadline: float) -> dict[str, Any]:
        event = real(self, deadline)
        if event["event"] == "times":
            bridge.unplug()
        return event

    monkeypatch.setattr(Link, "_event", pulling)
    found = open_device("adb://emulator-5554", python=sys.executable, seconds=30).profile(tflite, 10**7)
    assert found.error is not None and found.error.code == "EQ-X873" and found.runs > 0


@pytest.mark.parametrize("text", ["adb://-s", "adb://a b", "adb://;reboot", "adb:///x"])
def test_wrong_addresses(text: str) -> None:
    refused("EQ-U922", lambda: open_device(text), UsageError)


def test_addresses_of_devices_on_the_network() -> None:
    assert Address.parse("adb://192.168.1.7:5555").serial == "192.168.1.7:5555"
