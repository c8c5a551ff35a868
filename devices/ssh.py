"""Devices over the system's `ssh`: its keys, its configuration and its known hosts, one connection for a conversation.

Nothing is asked on the terminal (`BatchMode`), and a host whose key is not known is refused, whatever the user's
configuration says. `EDGEQ_SSH_CONFIG` names another configuration file than `~/.ssh/config`.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeq.devices.link import Limits, agent_command, checked_python, ends, last_line
from edgeq.errors import DeviceError, EdgeqError, MissingError, UsageError

SCHEME = "ssh"
FORM = "ssh://[user@]host[:port]"
CONFIG = "EDGEQ_SSH_CONFIG"
CONNECT_SECONDS = 10
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", re.ASCII)
_V6 = re.compile(r"\[([0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9]{1,16})?)\]", re.ASCII)
_SOCKET_PATH = 80  # of the 108 bytes that a socket's name may have; ssh appends some while it connects
# What ssh says when a connection fails, and what to do.
_CAUSES = (
    (
        re.compile(r"host key verification failed|host identification has changed|no .* host key is known", re.I),
        "EQ-X871",
        "its host key is not the known one",
        "make sure that it is your board; then `ssh {host}` once by hand, after `ssh-keygen -R {host}` if it is new",
    ),
    (
        re.compile(r"permission denied|too many authentication failures|no supported authentication", re.I),
        "EQ-X872",
        "it refuses the log-in",
        "ssh-copy-id {host}",
    ),
)


@dataclass(frozen=True)
class Address:
    """Of a device that speaks ssh.

    Args:
        host: Name, address or entry of ssh's configuration.
        user: Who logs in, as ssh's configuration says when empty.
        port: As ssh's configuration says when None.
    """

    host: str
    user: str = ""
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that `ssh://` text means.

        Raises:
            UsageError: EQ-U870, it is none.
        """
        place = text.removeprefix(f"{SCHEME}://")
        user, at, rest = place.rpartition("@")
        host, colon, port = rest, "", ""
        if not rest.endswith("]"):  # the colons of an IPv6 address stand in brackets
            head, mark, tail = rest.rpartition(":")
            host, colon, port = (head, mark, tail) if mark else (rest, "", "")
        six = _V6.fullmatch(host)
        good = (
            text.startswith(f"{SCHEME}://")
            and (six or _HOST.fullmatch(host))
            and (not at or _USER.fullmatch(user))
            and (not colon or (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536))
        )
        if not good:
            message = f"{text!r} is no address of a device over ssh"
            raise UsageError(message, code="EQ-U870", place="--on", hint=f"give {FORM}, such as ssh://pi@raspberrypi")
        return cls(six[1] if six else host, user, int(port) if colon else None)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" if self.user else host

    def words(self) -> list[str]:
        """For the command line of `ssh`."""
        port = [] if self.port is None else ["-p", str(self.port)]
        user = ["-l", self.user] if self.user else []
        return [*port, *user, "--", self.host]


class SshTransport:
    """Python on a device over ssh; a `edgeq.devices.link.Transport`.

    Args:
        address: Of the device.
        python: Name or path of the interpreter there.
        limits: Of the conversation.

    Raises:
        UsageError: EQ-U870, `python` is no name of a program.
        MissingError: EQ-P870, this machine has no `ssh`.
    """

    remote = True

    def __init__(self, address: Address, python: str = "python3", limits: Limits | None = None) -> None:
        program = shutil.which("ssh")
        if program is None:
            raise MissingError("there is no `ssh` here", code="EQ-P870", hint="apt-get install openssh-client")
        self.name = f"{SCHEME}://{address}" + (f":{address.port}" if address.port else "")
        self.limits = limits or Limits()
        self._ssh, self._address, self._python = program, address, checked_python(python)
        self._folder: Path | None = None
        self._master: subprocess.Popen[bytes] | None = None

    def start(self, boot: str, word: str) -> subprocess.Popen[bytes]:
        """See `Transport`; connects first.

        Raises:
            DeviceError: EQ-X870 to EQ-X872, there is no connection, with the reason.
        """
        if self._master is None:
            self._connect()
        script = agent_command(self._python, boot, word)
        words = [*self._options("no"), *self._address.words(), f"/bin/sh -c {shlex.quote(script)}"]
        return self._popen(words)

    def explain(self, said: str) -> EdgeqError | None:
        """See `Transport`: EQ-X873 when the connection is gone."""
        if self._master is None or not ends(self._master, 2):
            return None
        message = "the connection to the device was lost"
        reason = last_line(_read_all(self._master)) or last_line(said)
        hint = "see whether it has power and network; what it ran has ended, and the next call starts afresh"
        return DeviceError(f"{message}: {reason}" if reason else message, code="EQ-X873", place=self.name, hint=hint)

    def close(self) -> None:
        """End the connection."""
        master, self._master = self._master, None
        if master is not None:
            _close(master)
            if not ends(master, 2):
                master.kill()
                master.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _connect(self) -> None:
        """Open the connection that the conversation uses; it ends when our end of its stdin does."""
        folder = tempfile.mkdtemp(prefix="edgeq-ssh-")
        if len(folder) > _SOCKET_PATH:
            os.rmdir(folder)  # noqa: PTH106
            folder = tempfile.mkdtemp(prefix="edgeq-ssh-", dir="/tmp")
        self._folder = Path(folder)
        word = secrets.token_hex(8)
        remote = f"/bin/sh -c {shlex.quote(f'echo {word}; exec cat >/dev/null')}"
        self._master = self._popen([*self._options("yes"), *self._address.words(), remote])
        if not _appears(self._master, word.encode(), CONNECT_SECONDS + self.limits.hello):
            said = _read_all(self._master) if ends(self._master, 1) else ""
            self.close()
            raise self._unreachable(said)

    def _options(self, master: str) -> list[str]:
        config = os.environ.get(CONFIG)
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": str(CONNECT_SECONDS),
            "ConnectionAttempts": "1",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ControlMaster": master,
            "ControlPath": f"{self._folder}/s",
            "ControlPersist": "no",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "LogLevel": "ERROR",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        return [self._ssh, "-T", *(["-F", config] if config else []), *options]

    def _popen(self, words: list[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "LC_ALL": "C"}  # the causes of failures are read
        pipe = subprocess.PIPE
        return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, bufsize=0)

    def _unreachable(self, said: str) -> EdgeqError:
        """The error for a connection that does not come about."""
        for pattern, code, what, hint in _CAUSES:
            if pattern.search(said):
                message = f"no connection: {what} ({last_line(said)})"
                return DeviceError(message, code=code, place=self.name, hint=hint.format(host=self._address))
        reason = last_line(said) or "no answer in time"
        hint = f"see whether it is on and in this network: ping {self._address.host}"
        return DeviceError(f"no connection: {reason}", code="EQ-X870", place=self.name, hint=hint)


def _appears(process: subprocess.Popen[bytes], word: bytes, seconds: float) -> bool:
    """Whether a process prints `word` within some seconds and a megabyte."""
    assert process.stdout is not None
    deadline, seen = time.monotonic() + seconds, b""
    while (left := deadline - time.monotonic()) > 0 and len(seen) < 1 << 20:
        if select.select([process.stdout], [], [], left)[0]:
            block = os.read(process.stdout.fileno(), 1 << 16)
            if not block:
                return False
            seen += block
            if word in seen:
                return True
    return False


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _read_all(process: subprocess.Popen[bytes]) -> str:
    """What an ended process left in its stderr."""
    assert process.stderr is not None
    return (process.stderr.read(1 << 16) or b"").decode(errors="replace")
