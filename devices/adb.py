"""Devices over the system's `adb`: Linux and Android boards whose adbd lets a shell run Python.

The device's key was accepted on its screen once; `adb` itself keeps it. Nothing is installed there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from edgeq.devices.link import Limits, agent_command, checked_python, ends, last_line
from edgeq.errors import DeviceError, EdgeqError, MissingError, UsageError

SCHEME = "adb"
FORM = "adb://[SERIAL]"
INSTALL = "apt-get install adb"
NOTE = "edgeq has met a stand-in for adb only, never a real device"
ASK_SECONDS = 20.0
"""For a question to `adb`, whose server may have to start first."""

_SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}", re.ASCII)
# Android gives a shell no home that it may write to.
_HOME = '[ -n "$XDG_CACHE_HOME" ] || [ ! -d /data/local/tmp ] || export XDG_CACHE_HOME=/data/local/tmp; '


@dataclass(frozen=True)
class Address:
    """Of a device that `adb devices` lists.

    Args:
        serial: Its serial number, or host and port; empty for the only one there is.
    """

    serial: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that `adb://` text means.

        Raises:
            UsageError: EQ-U922, it is none.
        """
        serial = text.removeprefix(f"{SCHEME}://")
        if not text.startswith(f"{SCHEME}://") or (serial and not _SERIAL.fullmatch(serial)):
            message, hint = f"{text!r} is no address of a device over adb", f"give {FORM}; adb devices lists them"
            raise UsageError(message, code="EQ-U922", place="--on", hint=hint)
        return cls(serial)

    def __str__(self) -> str:
        return f"{SCHEME}://{self.serial}"


class AdbTransport:
    """Python on a device over adb; a `edgeq.devices.link.Transport`.

    Args:
        address: Of the device.
        python: Name or path of the interpreter there.
        limits: Of the conversation.

    Raises:
        UsageError: EQ-U870, `python` is no name of a program.
        MissingError: EQ-P921, this machine has no `adb`.
    """

    remote = True

    def __init__(self, address: Address, python: str = "python3", limits: Limits | None = None) -> None:
        program = shutil.which("adb")
        if program is None:
            raise MissingError("there is no `adb` here", code="EQ-P921", hint=INSTALL)
        self.name, self.limits = str(address), limits or Limits()
        self._adb, self._address, self._python = program, address, checked_python(python)
        self._serial = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, boot: str, word: str) -> subprocess.Popen[bytes]:
        """See `Transport`.

        Raises:
            UsageError: EQ-U922, there are several devices, and the address names none.
            DeviceError: EQ-X931 to EQ-X933, the device is not there, does not trust this machine, or is not ready.
        """
        self._serial = self._chosen(self._states())
        words = [self._adb, "-s", self._serial, "shell", "-T", _HOME + agent_command(self._python, boot, word)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        return self._process

    def explain(self, said: str) -> EdgeqError | None:
        """See `Transport`: EQ-X873 when the device is no longer there."""
        try:
            state = self._states().get(self._serial, "gone")
        except DeviceError as error:
            state = error.message
        if state == "device":
            return None
        reason = last_line(said) or state
        hint = "plug it in again, and see `adb devices`; what it ran has ended, and the next call starts afresh"
        message = f"the connection to the device was lost: {reason}"
        return DeviceError(message, code="EQ-X873", place=self.name, hint=hint)

    def close(self) -> None:
        """See `Transport`."""
        process, self._process = self._process, None
        if process is not None and not ends(process, 0):
            process.kill()
            process.wait()

    def _states(self) -> dict[str, str]:
        """Every device that adb knows, with its state."""
        try:
            done = subprocess.run(
                [self._adb, "devices"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ASK_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message, hint = f"`adb devices` does not answer within {ASK_SECONDS:g} s", "adb kill-server, then again"
            raise DeviceError(message, code="EQ-X933", place=self.name, hint=hint) from error
        if done.returncode != 0:
            message = f"`adb devices` fails: {last_line(done.stderr) or last_line(done.stdout)}"
            raise DeviceError(message, code="EQ-X933", place=self.name, hint="adb kill-server, then again")
        rows = (line.split(None, 1) for line in done.stdout.splitlines()[1:] if not line.startswith("*"))
        return {row[0]: row[1].strip() for row in rows if len(row) == 2}

    def _chosen(self, states: Mapping[str, str]) -> str:
        """The device that the address means, once it is ready."""
        serial = self._address.serial or (next(iter(states)) if len(states) == 1 else "")
        if not serial and states:
            message = f"{len(states)} devices are attached: {', '.join(sorted(states))}"
            raise UsageError(message, code="EQ-U922", place="--on", hint=f"name one: --on adb://{min(states)}")
        if serial not in states:
            known = f"; there are: {', '.join(sorted(states))}" if states else ""
            hint = "plug it in, turn on USB debugging, or `adb connect HOST`; then `adb devices`"
            message = f"adb knows no {f'device {serial}' if serial else 'device'}{known}"
            raise DeviceError(message, code="EQ-X931", place=self.name, hint=hint)
        state = states[serial]
        if state == "unauthorized":
            message, hint = "the device does not trust this machine yet", "accept the key on its screen, then again"
            raise DeviceError(message, code="EQ-X932", place=self.name, hint=hint)
        if state != "device":
            hint = f"adb -s {serial} reconnect; no permissions: a udev rule, or the group plugdev"
            raise DeviceError(f"the device is not ready: {state}", code="EQ-X933", place=self.name, hint=hint)
        return serial
