"""Boards on a serial line: reports of their firmware, or the reason why there are none, within a bound of time."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from edgeq.devices.frames import Begin, Boot, FrameReader, Refusal, Report
from edgeq.devices.link import Limits
from edgeq.errors import DeviceError, MissingError, UsageError

SCHEME = "serial"
FORM = "serial://PORT[?baud=115200]"
INSTALL = "pip install 'edgeq[mcu]'"
BAUD = 115200
DAMAGED_REPORTS = 3  # in a row, until the line is given up
_POLL = 0.1
_PORT = re.compile(r"(/[A-Za-z0-9._:+@-]+)+|COM[0-9]{1,3}", re.ASCII)
_QUERY = re.compile(r"baud=([0-9]{2,8})", re.ASCII)
_DENIED = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Address:
    """Of a board on a serial line.

    Args:
        port: Path of the port, or its name on Windows.
        baud: Bits a second.
    """

    port: str
    baud: int = BAUD

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that `serial://` text means.

        Raises:
            UsageError: EQ-U920, it is none.
        """
        port, mark, query = text.removeprefix(f"{SCHEME}://").partition("?")
        baud = _QUERY.fullmatch(query)
        if not text.startswith(f"{SCHEME}://") or not _PORT.fullmatch(port) or (mark and baud is None):
            message = f"{text!r} is no address of a board on a serial line"
            hint = f"give {FORM}, such as serial:///dev/ttyACM0; edgeq devices --scan lists ports"
            raise UsageError(message, code="EQ-U920", place="--on", hint=hint)
        return cls(port, BAUD if baud is None else int(baud[1]))

    def __str__(self) -> str:
        return f"{SCHEME}://{self.port}" + ("" if self.baud == BAUD else f"?baud={self.baud}")


class SerialLine:
    """An open port that nobody else reads; a context manager.

    Args:
        address: Of the board.
        limits: Seconds until the first frame (`hello`), between two (`silence`) and in all (`answer`).

    Raises:
        MissingError: EQ-P920, pyserial is not installed.
        DeviceError: EQ-X920, the port cannot be opened.
    """

    def __init__(self, address: Address, limits: Limits) -> None:
        self._address, self._limits = address, limits
        try:
            import serial
        except ImportError as error:
            message = "pyserial, which reads serial lines, is not installed"
            raise MissingError(message, code="EQ-P920", place="--on", hint=INSTALL) from error
        try:
            self._port: Any = serial.Serial(address.port, address.baud, timeout=_POLL, exclusive=True)
            self._port.reset_input_buffer()
        except (OSError, ValueError) as error:  # serial.SerialException is an OSError
            raise self._closed(error) from error

    def __enter__(self) -> SerialLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the port back."""
        with suppress(OSError):
            self._port.close()

    def reports(self, digest: str) -> Generator[Report, None, None]:
        """What the board reports, for ever.

        Args:
            digest: Of the network that it should run.

        Raises:
            DeviceError: EQ-X921 nothing comes; EQ-X922 it is no text; EQ-X923 it is the text of another program;
                EQ-X924 the board runs another network; EQ-X925 it started again; EQ-X926 the line damages what it
                carries; EQ-X927 it fell silent; EQ-X928 the port is gone; EQ-X929 the network does not run.
        """
        reader, damaged, begun = FrameReader(), 0, False
        end = time.monotonic() + self._limits.answer
        heard = time.monotonic() + self._limits.hello - self._limits.silence
        while True:
            frames = reader.frames
            for event in reader.feed(self._read()):
                if isinstance(event, Boot) and begun:
                    raise self._error("EQ-X925", "the board started again in the middle of a report")
                if isinstance(event, Refusal):
                    raise self._error("EQ-X929", f"the network does not run there: {event.reason}")
                if isinstance(event, Begin):
                    self._check(event, digest)
                    begun = True
                if isinstance(event, Report):
                    begun, damaged = False, reader.damaged
                    yield event
                    end = time.monotonic() + self._limits.answer
            now = time.monotonic()
            heard = now if reader.frames > frames else heard
            if reader.damaged - damaged >= DAMAGED_REPORTS:
                raise self._error("EQ-X926", f"{reader.damaged - damaged} reports in a row arrived damaged")
            if now - heard > self._limits.silence or now > end:
                raise self._nothing(reader)

    def _read(self) -> bytes:
        try:
            data: bytes = self._port.read(max(1, self._port.in_waiting))
        except (OSError, TypeError, AttributeError) as error:  # the latter two: closed by another thread
            raise self._error("EQ-X928", f"the port is gone: {error}") from error
        return data

    def _check(self, begin: Begin, digest: str) -> None:
        if begin.digest != digest:
            message = f"the board runs another network: {begin.digest[:32]} instead of {digest}"
            raise self._error("EQ-X924", message)

    def _nothing(self, reader: FrameReader) -> DeviceError:
        """Why no report has come in time."""
        if reader.frames:
            said = f": {reader.last_words!r}" if reader.last_words else ""
            return self._error("EQ-X927", f"the board fell silent after {reader.frames} frames{said}")
        if reader.damaged:
            return self._error("EQ-X926", f"all of {reader.damaged} frames arrived damaged")
        if not reader.seen:
            return self._error("EQ-X921", f"nothing came within {self._limits.hello:g} s")
        if reader.is_text:
            return self._error("EQ-X923", f"something else than an edgeq report is printed: {reader.last_words!r}")
        return self._error("EQ-X922", f"{reader.seen} bytes came that are no text, at {self._address.baud} baud")

    def _error(self, code: str, message: str) -> DeviceError:
        return DeviceError(message, code=code, place=str(self._address), hint=_HINTS[code])

    def _closed(self, error: Exception) -> DeviceError:
        """The error for a port that does not open."""
        number = getattr(error, "errno", None)
        hint = "edgeq devices --scan"
        if number in _DENIED:
            hint = "sudo usermod -a -G dialout $USER, then log in again"
        elif "lock" in str(error).lower():
            hint = "close the program that has it open: a terminal, an IDE, another edgeq"
        return DeviceError(f"no serial line: {error}", code="EQ-X920", place=str(self._address), hint=hint)


_FLASH = "build `c/` of the artifact into the firmware and flash that: docs/microcontrollers.md"
_HINTS = {
    "EQ-X921": "reset the board; see whether its firmware calls NAME_report, and whether TX is wired to RX",
    "EQ-X922": "name the rate of the firmware: serial://PORT?baud=460800",
    "EQ-X923": _FLASH,
    "EQ-X924": _FLASH,
    "EQ-X925": "look for a watchdog that the inference starves, a stack that is too small, a weak supply",
    "EQ-X926": "use a lower rate on both sides, such as ?baud=57600, a shorter cable, no flow control",
    "EQ-X927": "reset the board; a fault handler, a stack that is too small or a debugger may have stopped it",
    "EQ-X928": "plug it in again: edgeq devices --scan",
    "EQ-X929": "give NAME_report an arena that is aligned to 8 bytes",
}
