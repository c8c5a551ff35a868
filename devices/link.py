"""A conversation with the agent on a device, over whatever starts a program there.

Nothing is believed and nothing waits for ever: answers are lines behind a word drawn for the conversation, everything
else is counted and thrown away, and each step has a limit of time that a slow but living device keeps.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import os
import secrets
import selectors
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from edgeq.artifact import Artifact
from edgeq.artifact.files import GOLDEN_EXPECTED, GOLDEN_INPUTS, MANIFEST
from edgeq.devices.kit import OLDEST_PYTHON, kit
from edgeq.errors import DeviceError, EdgeqError, GateError, InputError, MissingError, UsageError
from edgeq.hashing import file_sha256

Event = Callable[[dict[str, Any]], None]

_CLASSES: Mapping[str, type[EdgeqError]] = {
    cls: kind for cls, kind in zip("GUIPX", (GateError, UsageError, InputError, MissingError, DeviceError), strict=True)
}
_BLOCK = 1 << 16
_STDERR = 1 << 16
_JUNK = 1 << 20
_LINE = 1 << 23  # a profile with thousands of layers
_FOUND_NOTHING, _NOT_RUNNABLE = 127, 126
_SIGNALS = {
    signal.SIGKILL: "the system ended it, which it does when memory runs out",
    signal.SIGILL: "it used an instruction that this CPU lacks",
    signal.SIGSEGV: "it crashed",
    signal.SIGBUS: "it crashed",
    signal.SIGABRT: "it gave up",
}


@dataclass(frozen=True)
class Limits:
    """Seconds that the steps of a conversation may take, and the slowest transfer.

    Args:
        hello: Until the agent answers.
        silence: Between two signs of life of a working agent.
        answer: For one request, in all.
        bytes_per_second: A transfer slower than this is given up; `silence` is granted beyond.
    """

    hello: float = 30
    silence: float = 30
    answer: float = 900
    bytes_per_second: float = 32_000


class Transport(Protocol):
    """A way to run Python on a device."""

    name: str
    remote: bool
    limits: Limits

    def start(self, boot: str, word: str) -> subprocess.Popen[bytes]:
        """Start `python -c boot` there, all streams piped; a shell may end with `WORD {"event": "exit", "code": N}`."""

    def explain(self, said: str) -> EdgeqError | None:
        """Why a program ended before it should, if that was the fault of the way and not of the program."""

    def close(self) -> None:
        """Leave nothing running."""


def checked_python(python: str) -> str:
    """`python`, once it can be the name or path of an interpreter.

    Raises:
        UsageError: EQ-U870, it cannot.
    """
    if not python or not python.isprintable():
        message, hint = f"{python!r} is no name of a program", "such as --python /opt/venv/bin/python"
        raise UsageError(message, code="EQ-U870", place="--python", hint=hint)
    return python


def agent_command(python: str, boot: str, word: str) -> str:
    """A line for a POSIX shell on a device that runs `python -c boot` and then says how that ended.

    Args:
        python: Name or path of the interpreter there.
        boot: What `python -c` is given.
        word: Before the last line, as for `Transport.start`.
    """
    # Letters, digits and quotes only, which every login shell passes on unchanged.
    encoded = base64.b64encode(boot.encode()).decode()
    program = f'import base64;exec(base64.b64decode("{encoded}"))'
    run = f"{shlex.quote(python)} -c {shlex.quote(program)}"
    return f'{run}; printf \'%s {{"event":"exit","code":%d}}\\n\' {word} $?'


def ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends within some seconds."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return True
    return False


def last_line(text: str) -> str:
    """The last line with something in it, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


class ProcessTransport:
    """Python in a process of this machine; a `Transport`.

    Args:
        name: Of the device.
        words: The command that stands for `python`.
        environment: Of the process, this one's when None.
        limits: Of the conversation.
    """

    remote = False

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self._words, self._environment = words, environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, boot: str, word: str) -> subprocess.Popen[bytes]:
        """See `Transport`."""
        del word
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*self._words, "-c", boot], stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment, bufsize=0
        )
        return self._process

    def explain(self, said: str) -> EdgeqError | None:
        """See `Transport`: there is nothing between."""
        del said
        return None

    def close(self) -> None:
        """See `Transport`."""
        if self._process is not None:
            self._process.kill()


class Link:
    """An open conversation; a context manager.

    Args:
        transport: The way to the device.

    Raises:
        MissingError: EQ-P871, there is no usable Python.
        DeviceError: The transport's own errors; EQ-X876 something else than the agent answers; EQ-X877 it takes too
            long; EQ-X878 the agent ended.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._limits = transport.limits
        self._word = secrets.token_hex(8)
        self._rest, self._junk, self._said = b"", 0, b""
        self._code: int | None = None
        program = kit(self._word)
        self._process = transport.start(program.boot, self._word)
        self._selector = selectors.DefaultSelector()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._stderr, selectors.EVENT_READ)
        try:
            deadline = time.monotonic() + self._limits.hello
            self._write([program.content], deadline)
            self.hello = self._receive(deadline)
            self._check_hello()
        except BaseException:
            self.close()
            raise

    @property
    def _stdin(self) -> int:
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    @property
    def _stdout(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    @property
    def _stderr(self) -> int:
        assert self._process.stderr is not None
        return self._process.stderr.fileno()

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the agent; it also ends by itself when this process dies."""
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what is left in the buffer has no reader
                    continue
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def lock(self, wait: float, waiting: Callable[[str], None]) -> str | None:
        """Be the only one who measures there, for as long as this conversation lasts.

        Args:
            wait: Seconds to wait for another one to end.
            waiting: Told who that is, if there is one.

        Returns:
            Why there are no locks, None where there are.

        Raises:
            DeviceError: EQ-X875, another one measures for longer.
        """
        who = f"{getpass.getuser()}@{socket.gethostname()}"
        told = lambda event: waiting(event["holder"]) if event["event"] == "waiting" else None  # noqa: E731
        answer: str | None = self.ask("lock", told, wait=wait, who=who, limit=wait + self._limits.silence)
        return answer

    def place(self, artifact: Artifact) -> dict[str, str]:
        """Where the agent finds an artifact; its files are sent where it does not have them yet.

        Raises:
            DeviceError: EQ-X873 the connection was cut; EQ-X874 there is no room; EQ-X877 the link is too slow.
        """
        if not self._transport.remote:
            return {"path": str(artifact.folder.resolve())}
        files = _needed(artifact)
        key = key_of(files)
        if not self.ask("have", key=key):
            self._store(artifact.folder, key, files)
        return {"key": key}

    def _store(self, folder: Path, key: str, files: list[dict[str, Any]]) -> None:
        self._write_request({"do": "store", "key": key, "files": files})
        event = self._event(time.monotonic() + self._limits.silence)
        size = sum(f["bytes"] for f in files)
        seconds = self._limits.silence + size / self._limits.bytes_per_second
        deadline = time.monotonic() + seconds
        try:
            if event["event"] != "ready":
                raise self._nonsense(f"it answers a transfer with {event['event']!r}")
            self._write((b for f in files for b in _blocks(folder / f["path"])), deadline)
            self._result(deadline)
        except DeviceError as error:
            if error.code != "EQ-X877":
                raise
            message = f"{size / 1e6:.1f} MB could not be sent within {seconds:.0f} s: the connection is too slow"
            hint = "use a cable, or copy the folder and run `python run.py` in it on the device"
            raise DeviceError(message, code="EQ-X877", place=self._transport.name, hint=hint) from error

    def ask(self, do: str, seen: Event | None = None, *, limit: float | None = None, **values: Any) -> Any:
        """The agent's answer to a request.

        Args:
            do: What it is to do.
            seen: Given every event that comes before the answer.
            limit: Seconds until the answer, those of `Limits` by default.
            **values: Of the request.
        """
        self._write_request({"do": do, **values})
        return self._result(time.monotonic() + (limit or self._limits.answer), seen)

    def _write_request(self, request: dict[str, Any]) -> None:
        self._write([f"{json.dumps(request)}\n".encode()], time.monotonic() + self._limits.silence)

    def _result(self, deadline: float, seen: Event | None = None) -> Any:
        while True:
            event = self._event(deadline)
            if event["event"] == "done":
                return event.get("result")
            if seen is not None:
                seen(event)

    def _event(self, deadline: float) -> dict[str, Any]:
        """The next event; errors are raised."""
        event = self._receive(min(deadline, time.monotonic() + self._limits.silence))
        if event["event"] == "error":
            code = str(event.get("code"))
            kind = _CLASSES.get(code[3:4], DeviceError)
            place = event.get("place") or self._transport.name
            raise kind(str(event.get("message")), code=code, place=place, hint=event.get("hint"))
        return event

    def _check_hello(self) -> None:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        if self.hello["event"] == "old":
            message = f"Python {self.hello.get('python')} on the device is too old: {oldest} or newer is needed"
            hint = "name another one: --python PATH"
            raise MissingError(message, code="EQ-P871", place=self._transport.name, hint=hint)
        if self.hello["event"] != "hello":
            raise self._nonsense(f"it greets with {self.hello['event']!r}")

    def _write(self, blocks: Iterable[bytes], deadline: float) -> None:
        """Write blocks, while reading what comes back; stops at an answer, which is an error then."""
        self._selector.register(self._stdin, selectors.EVENT_WRITE)
        try:
            for block in blocks:
                view = memoryview(block)
                while view:
                    ready = self._wait(deadline)
                    if self._stdin in ready:
                        view = view[os.write(self._stdin, view) :]
                    elif self._word.encode() in self._rest:
                        return
        except BrokenPipeError:
            return  # what it said last tells why
        finally:
            self._selector.unregister(self._stdin)

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next line that is an event. The connection's end, nonsense and `deadline` raise."""
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if not newline:
                if len(line) > _LINE:
                    raise self._nonsense("a line does not end")
                self._wait(deadline)
                continue
            self._rest = rest
            _, word, text = line.partition(self._word.encode() + b" ")
            event = _parsed(text) if word else None
            if event is None:
                self._junk += len(line) + 1
                if self._junk > _JUNK:
                    raise self._nonsense("it prints without end")
            elif event["event"] == "exit":
                self._code = event.get("code")
            else:
                return event

    def _wait(self, deadline: float) -> set[int]:
        """File descriptors that are ready; what there is to read has been read."""
        left = deadline - time.monotonic()
        ready = {int(key.fd) for key, _ in self._selector.select(max(left, 0))}
        if left <= 0:
            message = "the device does not answer in time"
            hint = "look whether it is busy or stuck: `edgeq doctor --device ADDRESS`"
            raise DeviceError(message, code="EQ-X877", place=self._transport.name, hint=hint)
        if self._stderr in ready:
            self._said = (self._said + (said := os.read(self._stderr, _BLOCK)))[-_STDERR:]
            if not said:
                self._selector.unregister(self._stderr)
        if self._stdout in ready:
            if not (block := os.read(self._stdout, _BLOCK)):
                raise self._ended()
            self._rest += block
            if len(self._rest) > 2 * _LINE or (len(self._rest) > _JUNK and self._word.encode() not in self._rest):
                raise self._nonsense("it prints without end")
        return ready

    def _ended(self) -> EdgeqError:
        """The error for a conversation that the other side ended."""
        code = self._exit_code()
        said = self._said.decode(errors="replace")
        if (error := self._transport.explain(said)) is not None:
            return error
        place, last = self._transport.name, last_line(said) or "it said nothing"
        if code in (_FOUND_NOTHING, _NOT_RUNNABLE):
            message, hint = f"no Python could be started there: {last}", "name one: --python PATH"
            return MissingError(message, code="EQ-P871", place=place, hint=hint)
        number = -code if code < 0 else code - 128
        if code < 0 or code > 128:
            name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
            cause = _SIGNALS.get(signal.Signals(number), "") if number in set(signal.Signals) else ""
            message = f"the program on the device ended with {name}{f': {cause}' if cause else ''}"
            return DeviceError(message, code="EQ-X878", place=place, hint="run `edgeq doctor --device ADDRESS`")
        return self._nonsense(f"it ended with code {code}: {last}")

    def _exit_code(self) -> int:
        """Of the program, from the shell that ran it or from the process here."""
        line = self._rest.rpartition(self._word.encode() + b" ")[2]
        if self._code is None and (event := _parsed(line.strip())):
            self._code = event.get("code")
        try:
            own = self._process.wait(2)
        except subprocess.TimeoutExpired:
            own = 0
        return own if self._code is None else self._code

    def _nonsense(self, what: str) -> DeviceError:
        message = f"something else than edgeq's program answers: {what}"
        hint = "log in and run the same Python by hand, or name another one: --python PATH"
        return DeviceError(message, code="EQ-X876", place=self._transport.name, hint=hint)


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _needed(artifact: Artifact) -> list[dict[str, Any]]:
    """The files that running an artifact takes: model, manifest, golden vectors."""
    own = [f["path"] for f in artifact.model_entries]
    return [
        {"path": path, "bytes": (file := artifact.folder / path).stat().st_size, "sha256": file_sha256(file)}
        for path in sorted({*own, MANIFEST, GOLDEN_INPUTS, GOLDEN_EXPECTED})
    ]


def key_of(files: list[dict[str, Any]]) -> str:
    """SHA-256 over names and contents of `files`."""
    text = json.dumps([[f["path"], f["sha256"]] for f in files])
    return hashlib.sha256(text.encode()).hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
